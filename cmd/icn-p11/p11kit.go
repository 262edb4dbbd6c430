package main

import (
	"os"
	"path/filepath"
	"strings"
)

// moduleDirs are where p11-kit looks for module files (p11-kit.conf's man
// page, FILES), the user's own last.
func moduleDirs() []string {
	dirs := []string{"/usr/share/p11-kit/modules", "/usr/local/share/p11-kit/modules", "/etc/pkcs11/modules"}
	base := os.Getenv("XDG_CONFIG_HOME")
	if base == "" {
		if home, err := os.UserHomeDir(); err == nil {
			base = filepath.Join(home, ".config")
		}
	}
	if base != "" {
		dirs = append(dirs, filepath.Join(base, "pkcs11", "modules"))
	}
	return dirs
}

const moduleName = "icn-p11.so"

// registered finds the module files that name this module.
func registered() (file, module string) {
	for _, dir := range moduleDirs() {
		files, _ := filepath.Glob(filepath.Join(dir, "*.module"))
		for _, f := range files {
			data, err := os.ReadFile(f)
			if err != nil {
				continue
			}
			for line := range strings.Lines(string(data)) {
				key, value, _ := strings.Cut(line, ":")
				if value = strings.TrimSpace(value); strings.TrimSpace(key) == "module" && filepath.Base(value) == moduleName {
					return f, value
				}
			}
		}
	}
	return "", ""
}

// registration checks that p11-kit's applications find the module.
func (d *doctor) registration() {
	const name = "p11-kit"
	file, module := registered()
	if file == "" {
		d.add(name, resultWarn, "install icn-p11.module, or write \"module: /path/to/icn-p11.so\" to /etc/pkcs11/modules/icn-p11.module",
			"no module file names %s: programs that use p11-kit do not see the tokens", moduleName)
		return
	}
	// A relative path is looked up in a directory that only p11-kit knows.
	if filepath.IsAbs(module) {
		if _, err := os.Stat(module); err != nil {
			d.add(name, resultFail, "install the module there, or correct the file", "%s names a module that is not there: %v", file, err)
			return
		}
	}
	if strings.HasPrefix(file, "/usr/local/share/") {
		d.add(name, resultWarn, "link it: ln -s "+file+" /etc/pkcs11/modules/", "%s is outside the directories that p11-kit of a distribution reads", file)
		return
	}
	d.add(name, resultOK, "", "%s registers %s", file, module)
}
