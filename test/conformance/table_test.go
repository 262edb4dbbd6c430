package conformance

import (
	ck "github.com/miekg/pkcs11"
)

// scenes is the table, in the order in which it runs: what makes tokens, or
// wears out tries of PINs, comes last.
func scenes() []scene {
	return []scene{
		{name: "slots", slot: ofToken, alone: true, rows: slots()},
		{name: "opening sessions", slot: ofToken, alone: true, rows: opening()},
		{name: "bad session", slot: ofToken, user: nobody, flags: ro, rows: badSession()},
		{name: "read-only public session", slot: ofToken, user: nobody, flags: ro, rows: append(publicSession(ro), vectorRows()...)},
		{name: "read-write public session", slot: ofToken, user: nobody, flags: rw, rows: publicSession(rw)},
		{name: "read-only user session", slot: ofToken, user: ck.CKU_USER, flags: ro, rows: userSession(ro)},
		{name: "read-write user session", slot: ofToken, user: ck.CKU_USER, flags: rw, rows: userSession(rw)},
		{name: "SO session", slot: ofToken, user: ck.CKU_SO, flags: rw, rows: soSession()},
		{name: "write-protected token", slot: ofProt, user: ck.CKU_USER, flags: ro, rows: protected()},
		{name: "PINs", slot: ofToken, alone: true, rows: pins()},
		{name: "initialising tokens", slot: ofToken, alone: true, rows: initToken()},
		{name: "slot events", slot: ofToken, alone: true, rows: events()},
	}
}
