package sealstore_test

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/sealstore/memseal"
	"github.com/InterCooperative-Network/icn-p11/sealstore/sealtest"
)

// openers are the kinds of device, by the prefix of the device's name.
var openers = map[string]sealtest.Opener{"mem:": openMemory}

func openDevice(device string) (sealstore.Sealer, error) {
	for prefix, open := range openers {
		if strings.HasPrefix(device, prefix) {
			return open(device)
		}
	}
	return nil, fmt.Errorf("unknown device %q", device)
}

func openMemory(device string) (sealstore.Sealer, error) {
	key, err := hex.DecodeString(strings.TrimPrefix(device, "mem:"))
	if err != nil {
		return nil, err
	}
	return memseal.WithKey([32]byte(key)), nil
}

func memoryDevice(*testing.T) string {
	var key [32]byte
	rand.Read(key[:])
	return "mem:" + hex.EncodeToString(key[:])
}

func TestMain(m *testing.M) { sealtest.Main(m, openDevice) }

func TestMemory(t *testing.T) {
	sealtest.Suite{Open: openDevice, Device: memoryDevice, Kills: 12}.Run(t)
}
