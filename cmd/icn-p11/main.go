// Command icn-p11 administers the tokens of the PKCS#11 module icn-p11.so:
// it makes them, lists them, changes their PINs and finds out what is wrong.
package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/InterCooperative-Network/icn-p11/internal/stats"
)

// version is the release; the Makefile sets it.
var version = "dev"

// Exit statuses.
const (
	exitOK = iota
	exitFailed
	exitUsage
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// usageError is a command line that cannot be carried out as it stands.
type usageError struct{ error }

func usage(format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...)}
}

// errReported is a failure of which everything has been said already.
var errReported = errors.New("failed")

// run is the whole command, from arguments to exit status.
func run(args []string, stdout, stderr io.Writer) int {
	out := &output{w: stdout}
	a := &app{out: out, err: stderr}
	root := a.root()
	root.SetArgs(args)
	cmd, err := root.ExecuteC()
	for _, r := range a.counts {
		r.Close()
	}
	if out.err != nil && (err == nil || err == out.err) {
		err = fmt.Errorf("writing to standard output: %w", out.err)
	}
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errReported):
		return exitFailed
	}
	fmt.Fprintf(stderr, "icn-p11: %v\n", err)
	if asJSON, _ := cmd.Flags().GetBool("json"); asJSON && !out.begun {
		a.json(struct {
			Error string `json:"error"`
		}{err.Error()})
	}
	if out.err != nil {
		return exitFailed
	}
	// What fails before a command has begun is the command line.
	if errors.As(err, new(usageError)) || !a.begun {
		fmt.Fprintf(stderr, "See \"%s --help\".\n", cmd.CommandPath())
		return exitUsage
	}
	return exitFailed
}

// output remembers that it could not be written, which much of what prints
// (help and tables) does not tell, and whether anything was.
type output struct {
	w     io.Writer
	begun bool
	err   error
}

func (o *output) Write(p []byte) (int, error) {
	o.begun = true
	n, err := o.w.Write(p)
	var path *fs.PathError
	if errors.As(err, &path) {
		err = path.Err
	}
	if o.err == nil {
		o.err = err
	}
	return n, o.err
}

// app is one run of the command.
type app struct {
	out, err io.Writer
	begun    bool // the command line was good and the command is at work
	asJSON   bool // --json is given
	bar      *bar // the last progress, nil for none
	counts   []*stats.Recorder
}

// note is for the person who watches; scripts read what goes to out.
func (a *app) note(format string, args ...any) {
	a.bar.clear()
	fmt.Fprintf(a.err, format+"\n", args...)
}

// does makes f what a command does.
func (a *app) does(f func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		a.begun = true
		a.asJSON, _ = cmd.Flags().GetBool("json") // false where there is none
		return f(cmd, args)
	}
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "icn-p11",
		Short: "Administer Ed25519 identities that are sealed to a TPM",
		Long: `icn-p11 makes and administers the tokens of the PKCS#11 module icn-p11.so. A
token is an identity: an Ed25519 key that only this machine's TPM 2.0 unseals,
with a user PIN to sign and an SO (security officer) PIN to set the user PIN.

TOKEN is a label, a serial number or a DID. SRC, where a PIN comes from, is
file:PATH, env:NAME, fd:N, credential:NAME (systemd) or prompt. The configuration
is described in icn-p11.conf(5).`,
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetVersionTemplate(versionText())
	root.SetUsageFunc(examplesLast(root.UsageFunc()))
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		// The usual message repeats the value, which may be a PIN given by mistake.
		var bad *pflag.InvalidValueError
		if errors.As(err, &bad) {
			return usage("--%s: %w", bad.GetFlag().Name, errors.Unwrap(bad))
		}
		var unknown *pflag.NotExistError
		if errors.As(err, &unknown) && unknown.GetSpecifiedShortnames() != "" {
			return usage("unknown flag: flags begin with two dashes, and a PIN is never an argument")
		}
		return usageError{err}
	})
	group(root,
		a.initCommand(),
		a.listCommand(),
		a.showCommand(),
		a.didCommand(),
		a.pinCommand(),
		a.signCommand(),
		a.verifyCommand(),
		a.importCommand(),
		a.exportICNCommand(),
		a.keyCommand(),
		a.certCommand(),
		a.agentCommand(),
		a.migrateCommand(),
		a.backupCommand(),
		a.tokenCommand(),
		a.pcrCommand(),
		a.attestCommand(),
		a.srkCommand(),
		a.lockoutCommand(),
		a.statusCommand(),
		a.metricsCommand(),
		a.doctorCommand(),
		a.versionCommand(),
	)
	root.SetHelpCommand(helpCommand(root))
	root.InitDefaultCompletionCmd("completion")
	for _, c := range root.Commands() {
		if c.Name() == "completion" {
			c.Args = nil
			c.RunE = func(*cobra.Command, []string) error {
				return usage("which shell? bash, zsh, fish or powershell")
			}
		}
	}
	return root
}

// examplesLast has the help of a command end with its examples.
func examplesLast(usage func(*cobra.Command) error) func(*cobra.Command) error {
	return func(c *cobra.Command) error {
		examples := c.Example
		c.Example = ""
		err := usage(c)
		c.Example = examples
		if err == nil && examples != "" {
			_, err = fmt.Fprintf(c.OutOrStderr(), "\nExamples:\n%s\n", examples)
		}
		return err
	}
}

// group makes cmd one that does nothing by itself but name its commands.
func group(cmd *cobra.Command, commands ...*cobra.Command) *cobra.Command {
	names := make([]string, len(commands))
	for i, c := range commands {
		names[i] = c.Name()
	}
	last := len(names) - 1
	question := names[last]
	if last > 0 {
		question = strings.Join(names[:last], ", ") + " or " + question
	}
	cmd.AddCommand(commands...)
	cmd.RunE = func(*cobra.Command, []string) error { return usage("which command? %s", question) }
	return cmd
}

// helpCommand is cobra's, but that a command which does not exist is an error.
func helpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Tell about a command",
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) (names []cobra.Completion, _ cobra.ShellCompDirective) {
			if cmd, rest, err := root.Find(args); err == nil && len(rest) == 0 {
				for _, c := range cmd.Commands() {
					if c.IsAvailableCommand() {
						names = append(names, cobra.CompletionWithDesc(c.Name(), c.Short))
					}
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return usage("there is no such command")
			}
			return cmd.Help()
		},
	}
}

// noArgs refuses arguments without repeating them: one may be a PIN.
func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usage("an argument is given where none is expected (a PIN is never an argument)")
	}
	return nil
}

func versionText() string {
	return fmt.Sprintf("icn-p11 %s (%s, %s/%s)\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

func (a *app) versionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  icn-p11 version --json",
		Args:    noArgs,
		RunE: a.does(func(*cobra.Command, []string) error {
			if asJSON {
				return a.json(struct {
					Version string `json:"version"`
					Go      string `json:"go"`
					OS      string `json:"os"`
					Arch    string `json:"arch"`
				}{version, runtime.Version(), runtime.GOOS, runtime.GOARCH})
			}
			_, err := io.WriteString(a.out, versionText())
			return err
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// oneToken checks the arguments of a command that takes TOKEN.
func oneToken(cmd *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return usage("which token? Give its label, serial number or DID")
	case len(args) > 1:
		return usage("one TOKEN is expected, and nothing behind it (a PIN is never an argument)")
	case strings.TrimSpace(args[0]) == "":
		return usage("TOKEN is empty")
	}
	return nil
}
