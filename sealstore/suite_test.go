package sealstore_test

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"sync"
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

// players are what the test binary does as another process, by the variable
// that holds its task.
var players = map[string]func(task string) error{}

func TestMain(m *testing.M) {
	sealstore.CheapPINs()
	for variable, play := range players {
		if task := os.Getenv(variable); task != "" {
			if err := play(task); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	sealtest.Main(m, openDevice)
}

func TestMemory(t *testing.T) {
	// Every Sealer is a device of its own, also of those with the same key.
	var mu sync.Mutex
	devices := map[string][]*memseal.Sealer{}
	extended := map[string][]int{}
	sealtest.Suite{
		Open: func(device string) (sealstore.Sealer, error) {
			s, err := openDevice(device)
			if err != nil {
				return nil, err
			}
			mu.Lock()
			defer mu.Unlock()
			m := s.(*memseal.Sealer)
			for _, pcr := range extended[device] {
				m.Extend(pcr, sealtest.Extension)
			}
			devices[device] = append(devices[device], m)
			return s, nil
		},
		Device: memoryDevice,
		Extend: func(t *testing.T, device string, pcr int) {
			mu.Lock()
			defer mu.Unlock()
			extended[device] = append(extended[device], pcr)
			for _, m := range devices[device] {
				m.Extend(pcr, sealtest.Extension)
			}
		},
		Kills: 12,
	}.Run(t)
}

var (
	newPIN = []byte("another pin 1234")
	pcrs   = sealstore.BindingSpec{Bank: "sha256", PCRs: []int{0, 7}}
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
