// Command bench measures icn-p11 beside its peers and beside reference points
// (references), on this machine.
//
//	bench run [-quick] [-o FILE]   measure; write the figures as JSON
//	bench report FILE DIR          make DIR/performance.svg of them, and the
//	                               tables of DIR/performance.md
//
// What is measured runs in C hosts (host/host.c), which use the modules as
// applications do. make bench runs the first, make bench-report the second.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	if err := command(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func command(args []string) error {
	switch {
	case len(args) > 0 && args[0] == "run":
		f := flag.NewFlagSet("run", flag.ExitOnError)
		quick := f.Bool("quick", false, "try everything in less than a minute; the figures mean little")
		out := f.String("o", "build/bench.json", "where the figures go")
		f.Parse(args[1:])
		r, err := run(*quick)
		if err != nil {
			return err
		}
		r.Targets = r.targets()
		data, err := json.MarshalIndent(r, "", "  ")
		if err != nil {
			return err
		}
		for _, t := range r.Targets {
			fmt.Println(t)
		}
		return os.WriteFile(*out, append(data, '\n'), 0o644)
	case len(args) == 3 && args[0] == "report":
		data, err := os.ReadFile(args[1])
		if err != nil {
			return err
		}
		var r Results
		if err := json.Unmarshal(data, &r); err != nil {
			return fmt.Errorf("%s: %w", args[1], err)
		}
		return report(&r, filepath.Join(args[2], "performance.md"), filepath.Join(args[2], "performance.svg"))
	}
	return fmt.Errorf("usage: bench run [-quick] [-o FILE] | bench report FILE DIR")
}
