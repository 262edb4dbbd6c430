package tpm

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"github.com/InterCooperative-Network/icn-p11/internal/advice"
)

// mssim is the TCG's reference simulator: frames in an envelope on a TCP port,
// and on the next port the platform, which has to switch the TPM on. It serves
// one connection at a time, as swtpm does.
type mssim struct {
	host string
	port uint16
}

// Commands of the simulator's protocol (TpmTcpProtocol.h).
const (
	mssimPowerOn    = 1
	mssimCommand    = 8
	mssimNVOn       = 11
	mssimSessionEnd = 20
)

func (m *mssim) String() string {
	return fmt.Sprintf("mssim:host=%s,port=%d", m.host, m.port)
}

func (m *mssim) keep() bool    { return false }
func (m *mssim) alone() bool   { return true }
func (m *mssim) managed() bool { return false }
func (m *mssim) startup() bool { return true }

func (m *mssim) open(timeout time.Duration) (conn, error) {
	m.powerOn(min(glance, timeout))
	c, err := dialPatiently("tcp", net.JoinHostPort(m.host, strconv.Itoa(int(m.port))), timeout)
	if err != nil {
		return nil, &lostError{m.openError(err, timeout), false}
	}
	return &envelope{stream{c}}, nil
}

// powerOn switches the TPM on, which changes nothing where it is on. swtpm,
// which can play the simulator, is on and has no platform: what goes wrong here
// does not matter if the TPM answers afterwards.
func (m *mssim) powerOn(timeout time.Duration) {
	c, err := net.DialTimeout("tcp", net.JoinHostPort(m.host, strconv.Itoa(int(m.port)+1)), timeout)
	if err != nil {
		return
	}
	socket, err := detach(c)
	if err != nil {
		return
	}
	s := &stream{socket}
	defer s.Close()
	s.SetDeadline(time.Now().Add(timeout))
	for _, command := range []uint32{mssimPowerOn, mssimNVOn} {
		if _, err := s.Write(binary.BigEndian.AppendUint32(nil, command)); err != nil || acknowledged(s) != nil {
			return
		}
	}
	s.Write(binary.BigEndian.AppendUint32(nil, mssimSessionEnd))
}

func (m *mssim) openError(err error, timeout time.Duration) error {
	if timedOut(err) {
		return noConnection(m, timeout)
	}
	return advice.With(fmt.Errorf("%s: %w", m, plain(err)), "start the simulator there, or correct device_path")
}

// acknowledged reads the status that ends each answer.
func acknowledged(r io.Reader) error {
	var status [4]byte
	if _, err := io.ReadFull(r, status[:]); err != nil {
		return err
	}
	if n := binary.BigEndian.Uint32(status[:]); n != 0 {
		return fmt.Errorf("the simulator answers with status %d", n)
	}
	return nil
}

// envelope carries frames as the simulator wants them.
type envelope struct{ stream }

func (e *envelope) exchange(command []byte, timeout time.Duration) ([]byte, error) {
	e.SetDeadline(time.Now().Add(timeout))
	head := binary.BigEndian.AppendUint32(nil, mssimCommand)
	head = append(head, 0) // locality
	head = binary.BigEndian.AppendUint32(head, uint32(len(command)))
	if _, err := e.Write(append(head, command...)); err != nil {
		return nil, e.explain(err, timeout)
	}
	var size [4]byte
	if _, err := io.ReadFull(e, size[:]); err != nil {
		return nil, e.explain(err, timeout)
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > maxFrame {
		return nil, errFrame
	}
	answer := make([]byte, n)
	if _, err := io.ReadFull(e, answer); err != nil {
		return nil, e.explain(err, timeout)
	}
	if err := acknowledged(e); err != nil {
		return nil, e.explain(err, timeout)
	}
	return answer, nil
}

func (e *envelope) Close() error {
	e.SetDeadline(time.Now().Add(glance))
	e.Write(binary.BigEndian.AppendUint32(nil, mssimSessionEnd))
	return e.stream.Close()
}
