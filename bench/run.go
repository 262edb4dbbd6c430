package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// run measures everything.
func run(quick bool) (*Results, error) {
	b, err := prepare(quick)
	if b != nil && b.dir != "" {
		defer b.close()
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
		go func() {
			<-stop
			b.close()
			os.Exit(1)
		}()
	}
	if err != nil {
		return nil, err
	}
	r := &Results{Quick: quick, Versions: map[string]string{}, Cold: map[string][]Cold{}, Together: map[string][]int{},
		Starts: map[string]Starts{}, Fsyncs: map[string]float64{}, Sizes: map[string]int64{}}
	r.Machine = describe()
	r.Machine.Load[0] = load()
	for _, part := range []struct {
		name string
		run  func(*Results) error
	}{
		{"versions", b.versions},
		{"interruptions", b.pauses},
		{"operations", b.steady},
		{"starts and searches", b.starts},
		{"processes", b.processes},
		{"logins", b.logins},
		{"fsyncs", b.fsyncs},
		{"TPM commands", b.commands},
		{"inner layers", b.inner},
	} {
		begin := time.Now()
		if err := part.run(r); err != nil {
			return nil, fmt.Errorf("%s: %w", part.name, err)
		}
		fmt.Fprintf(os.Stderr, "%s: %.0f s\n", part.name, time.Since(begin).Seconds())
	}
	r.Machine.Load[1] = load()
	return r, nil
}

func describe() (m Machine) {
	m.Cores = runtime.NumCPU()
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			m.CPU = strings.TrimSpace(value)
			break
		}
	}
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	m.Kernel = strings.TrimSpace(string(release))
	return m
}

func load() string {
	avg, _ := os.ReadFile("/proc/loadavg")
	one, _, _ := strings.Cut(string(avg), " ")
	return one
}

// versions tells of what the figures are.
func (b *bench) versions(r *Results) error {
	r.Versions["Go"] = runtime.Version()
	for _, p := range []string{"softhsm2", "libtpm2-pkcs11-1", "swtpm", "openssl"} {
		out, err := exec.Command("dpkg-query", "-W", "-f=${Version}", p).Output()
		if err != nil {
			return err
		}
		r.Versions[p] = string(out)
	}
	st, err := os.Stat(b.module)
	if err != nil {
		return err
	}
	r.Sizes["icn-p11.so"] = st.Size()
	return nil
}

// pauses measures the machine while nothing else runs.
func (b *bench) pauses(r *Results) error {
	ms := "2000"
	if b.quick {
		ms = "50"
	}
	out, err := b.host("", "pauses", ms)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(out, &r.Machine.Pauses); err != nil {
		return fmt.Errorf("%q: %w", out, err)
	}
	return nil
}

// subjects makes the tokens for what is measured over and over, of each key
// that a module has.
func (b *bench) subjects() (args []string, err error) {
	for _, s := range []string{
		b.subject(unlocked, b.module, "ed25519", "unlocked"),
		b.subject(sealed, b.module, "ed25519", "sealed"),
		b.subject(icnP256, b.module, "p256", "p256"),
		b.subject(softEd, b.softhsm, "ed25519", "ed25519"),
		b.subject(softP256, b.softhsm, "p256", "p256"),
		b.subject(tpm2P256, b.tpm2, "p256", "p256"),
	} {
		out, err := b.host("", "setup", s, "0")
		if err != nil {
			return nil, err
		}
		if bytes.Contains(out, []byte(`"can":true`)) {
			args = append(args, s)
		}
	}
	return args, nil
}

// steady measures operations, in one process.
func (b *bench) steady(r *Results) error {
	subjects, err := b.subjects()
	if err != nil {
		return err
	}
	rounds, ms := "7", "50"
	if b.quick {
		rounds, ms = "1", "5"
	}
	if err := b.openssl(r); err != nil {
		return err
	}
	out, err := b.host("", append(append([]string{"steady", rounds, ms}, subjects...), b.references()...)...)
	if err != nil {
		return err
	}
	if err := r.batches(out); err != nil {
		return err
	}
	// The same store and TPM, which others could use in between.
	conf := b.icnConf("shared", "icn.s", b.path("icn-steady"))
	if out, err = b.host(conf, "steady", rounds, ms, b.subject(shared, b.module, "ed25519", "sealed")); err != nil {
		return err
	}
	if err := r.batches(out); err != nil {
		return err
	}
	return b.openssl(r)
}

// batches takes what a host has written.
func (r *Results) batches(out []byte) error {
	for line := range bytes.Lines(out) {
		var x Batch
		if err := json.Unmarshal(line, &x); err != nil {
			return fmt.Errorf("%q: %w", line, err)
		}
		r.Batches = append(r.Batches, x)
	}
	return nil
}

// openssl asks openssl speed, which signs 32 bytes or so, with the key expanded
// each time.
func (b *bench) openssl(r *Results) error {
	out, err := exec.Command("openssl", "speed", "-mr", "-seconds", "1", "ed25519").Output()
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(out)) {
		// +F6:0:253:Ed25519:SIGNATURES A SECOND:VERIFICATIONS A SECOND
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) == 6 && f[3] == "Ed25519" {
			rate, err := strconv.ParseFloat(f[4], 64)
			if err != nil {
				return err
			}
			r.OpenSSL = append(r.OpenSSL, 1e9/rate)
			return nil
		}
	}
	return fmt.Errorf("openssl speed says nothing of Ed25519: %q", out)
}

// Numbers of objects.
var sizes = []int{10, 1000, 10000}

// starts measures new processes, with stores of all sizes.
func (b *bench) starts(r *Results) error {
	counts, times := sizes, 7
	if b.quick {
		counts, times = []int{10, 100}, 1
	}
	type store struct {
		n         int
		icn, soft string
	}
	var stores []store
	for _, n := range counts {
		icn, soft, err := b.fill(n)
		if err != nil {
			return err
		}
		stores = append(stores, store{n, icn, soft})
	}
	time.Sleep(2500 * time.Millisecond) // so that no file looks as if it had just been written
	for i := range times {
		for _, s := range stores {
			if s.n > 1000 && i >= 3 {
				continue // each takes SoftHSM2 many seconds
			}
			last := fmt.Sprintf("object %06d", s.n-1)
			for _, x := range []struct{ env, name, module, label string }{
				{s.icn, alone, b.module, last},
				{s.icn, unlocked, b.module, last},
				{s.soft, softEd, b.softhsm, last},
				{"", tpm2P256, b.tpm2, ""},
			} {
				if x.label == "" && s.n != counts[0] {
					continue
				}
				if x.name == alone {
					snapshots, err := filepath.Glob(filepath.Join(b.path(fmt.Sprintf("icn-%d", s.n)), "tokens", "*", "snapshot"))
					if err != nil {
						return err
					}
					if len(snapshots) == 0 && i > 0 {
						continue // too few objects
					}
					for _, path := range snapshots {
						if err := os.Remove(path); err != nil {
							return err
						}
					}
				}
				out, err := b.host(x.env, "cold", b.subject(x.name, x.module, "ed25519", "objects"), x.label)
				if err != nil {
					return err
				}
				var c Cold
				if err := json.Unmarshal(out, &c); err != nil {
					return fmt.Errorf("%q: %w", out, err)
				}
				if x.label != "" && c.Objects < s.n {
					return fmt.Errorf("%s lists %d objects of %d", x.name, c.Objects, s.n)
				}
				k := coldKey(s.n, x.name)
				r.Cold[k] = append(r.Cold[k], c)
			}
		}
	}
	return nil
}

// processes measures several at once.
func (b *bench) processes(r *Results) error {
	times, ms := 3, "1000"
	if b.quick {
		times, ms = 1, "20"
	}
	// Several processes cannot each keep the TPM to themselves.
	conf := b.icnConf("shared", "icn.s", b.path("icn-steady"))
	all := []struct{ env, name, subject string }{
		{conf, unlocked, b.subject(unlocked, b.module, "ed25519", "unlocked")},
		{conf, shared, b.subject(shared, b.module, "ed25519", "sealed")},
		{"", softEd, b.subject(softEd, b.softhsm, "ed25519", "ed25519")},
		{"", softP256, b.subject(softP256, b.softhsm, "p256", "p256")},
	}
	for range times {
		for _, x := range all {
			n, err := b.together(8, x.env, x.subject, ms)
			if err != nil {
				return err
			}
			r.Together[x.name] = append(r.Together[x.name], n)
		}
	}
	for range times {
		for _, x := range all {
			s := r.Starts[x.name]
			begin := time.Now()
			processor, failed, err := b.startAtOnce(16, x.env, x.subject)
			s.Took = max(s.Took, float64(time.Since(begin)))
			s.Processor += float64(processor)
			s.Processes += 16
			s.Failed += failed
			r.Starts[x.name] = s
			if failed > 0 && strings.HasPrefix(x.name, "icn-p11") {
				fmt.Fprintln(os.Stderr, err)
			}
		}
	}
	return nil
}

// together lets processes sign at the same time, and adds up their rates.
func (b *bench) together(n int, env, subject, ms string) (int, error) {
	var start []io.WriteCloser
	var out []*bufio.Reader
	var all []*exec.Cmd
	defer func() {
		for _, c := range all {
			c.Process.Kill()
			c.Wait()
		}
	}()
	for range n {
		c := b.command(env, "rate", subject, ms)
		in, err := c.StdinPipe()
		if err != nil {
			return 0, err
		}
		o, err := c.StdoutPipe()
		if err != nil {
			return 0, err
		}
		c.Stderr = os.Stderr
		if err := c.Start(); err != nil {
			return 0, err
		}
		all, start, out = append(all, c), append(start, in), append(out, bufio.NewReader(o))
		// One after the other: this is not about starting.
		if _, err := out[len(out)-1].ReadString('\n'); err != nil {
			return 0, fmt.Errorf("%s: %w", subject, err)
		}
	}
	for _, in := range start {
		io.WriteString(in, "go\n")
	}
	total := 0.0
	for _, o := range out {
		line, err := o.ReadBytes('\n')
		if err != nil {
			return 0, fmt.Errorf("%s: %w", subject, err)
		}
		var x Batch
		if err := json.Unmarshal(line, &x); err != nil {
			return 0, fmt.Errorf("%q: %w", line, err)
		}
		total += x.Rate
	}
	return int(total), nil
}

// startAtOnce has processes start, log in and sign, adds up the processor time
// that they take, and counts those that fail.
func (b *bench) startAtOnce(n int, env, subject string) (processor time.Duration, failures int, err error) {
	errs, all := make([]error, n), make([]*exec.Cmd, n)
	var wg sync.WaitGroup
	for i := range n {
		all[i] = b.command(env, "once", subject)
		wg.Go(func() {
			if _, err := all[i].Output(); err != nil {
				errs[i] = failed(all[i], err)
			}
		})
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			failures++
		}
		if p := all[i].ProcessState; p != nil {
			processor += p.UserTime() + p.SystemTime()
		}
	}
	return processor, failures, errors.Join(errs...)
}

// logins measures the first logins of processes.
func (b *bench) logins(r *Results) error {
	const each = 5
	times := 7
	if b.quick {
		times = 1
	}
	for range times {
		out, err := b.host("", "logins", b.subject(unlocked, b.module, "ed25519", "unlocked"), strconv.Itoa(each))
		if err != nil {
			return err
		}
		var all []Login
		for line := range bytes.Lines(out) {
			var l Login
			if err := json.Unmarshal(line, &l); err != nil {
				return fmt.Errorf("%q: %w", line, err)
			}
			all = append(all, l)
		}
		if len(all) != each {
			return fmt.Errorf("%d logins of %d", len(all), each)
		}
		r.Logins = append(r.Logins, all)
	}
	return nil
}

// fsyncs counts what creating an object costs, as strace(1) sees it.
func (b *bench) fsyncs(r *Results) error {
	const objects = 10
	for _, x := range []struct{ name, module, token string }{{unlocked, b.module, "unlocked"}, {softEd, b.softhsm, "ed25519"}} {
		var seen [2]int
		for i, n := range []int{0, objects} {
			log := b.path("strace")
			c := b.command("", "objects", b.subject(x.name, x.module, "ed25519", x.token), strconv.Itoa(n))
			c.Args = append([]string{"strace", "-f", "-qq", "-o", log, "-e", "trace=fsync,fdatasync,sync_file_range,syncfs,sync"}, c.Args...)
			c.Path = "/usr/bin/strace"
			if out, err := c.CombinedOutput(); err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			text, err := os.ReadFile(log)
			if err != nil {
				return err
			}
			seen[i] = bytes.Count(text, []byte("sync"))
		}
		r.Fsyncs[x.name] = float64(seen[1]-seen[0]) / objects
	}
	return nil
}

// commands runs operations one by one, with somebody in front of the TPM who
// writes down what is asked of it.
func (b *bench) commands(r *Results) error {
	spy, err := listen(b.path("spy.s"), b.path("icn.s"))
	if err != nil {
		return err
	}
	defer spy.Close()
	conf := b.icnConf("spy", "spy.s,exclusive", b.path("icn-steady"))
	c := b.command(conf, "steps", b.subject(sealed, b.module, "ed25519", "sealed"))
	c.Stderr = os.Stderr
	in, err := c.StdinPipe()
	if err != nil {
		return err
	}
	out, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if n := len(r.Commands); n > 0 {
			r.Commands[n-1].Commands = spy.take()
		}
		if name := lines.Text(); name != "" {
			r.Commands = append(r.Commands, Step{Name: name})
		}
		io.WriteString(in, "go\n")
	}
	if err := c.Wait(); err != nil {
		return err
	}
	if len(r.Commands) < 10 {
		return fmt.Errorf("only %d operations", len(r.Commands))
	}
	return nil
}

// inner runs the Go benchmarks of the packages behind the C interface.
func (b *bench) inner(r *Results) error {
	args := []string{"test", "-run", "^$", "-benchmem", "-vet=off", "-bench", ".", "-benchtime", "300ms"}
	if b.quick {
		args = append(args[:5], "-bench", "^Benchmark(Sign|Unseal|SignUnlocked)$", "-benchtime", "3x")
	}
	c := exec.Command("go", append(args, "./internal/eddsa", "./sealstore", "./tpm", "./p11")...)
	c.Stderr = os.Stderr
	out, err := c.Output()
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	pkg := ""
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		switch {
		case len(f) == 2 && f[0] == "pkg:":
			pkg = f[1][strings.Index(f[1], "icn-p11/")+len("icn-p11/"):]
		case len(f) >= 4 && strings.HasPrefix(f[0], "Benchmark"):
			g := GoBenchmark{Package: pkg, Name: strings.TrimPrefix(strings.TrimSuffix(f[0], "-"+strconv.Itoa(runtime.NumCPU())), "Benchmark")}
			for i := 2; i+1 < len(f); i += 2 {
				v, err := strconv.ParseFloat(f[i], 64)
				if err != nil {
					return fmt.Errorf("%q: %w", line, err)
				}
				switch f[i+1] {
				case "ns/op":
					g.Time = v
				case "allocs/op":
					g.Allocs = v
				}
			}
			r.Inner = append(r.Inner, g)
		}
	}
	return nil
}
