// Package account looks up users and groups in /etc/passwd and /etc/group
// alone. The C library would load the host's name service plugins into any
// program that the module is a guest in.
package account

import (
	"bufio"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Files are variables for the tests.
var (
	passwd = "/etc/passwd"
	group  = "/etc/group"
)

// UserName names a user, by number where the file has no name.
func UserName(uid uint32) string { return name(passwd, uid) }

// GroupName names a group, by number where the file has no name.
func GroupName(gid uint32) string { return name(group, gid) }

// Home gives the home directory of a user, or "".
func Home(uid uint32) string {
	if f := line(passwd, uid); len(f) >= 6 && filepath.IsAbs(f[5]) {
		return f[5]
	}
	return ""
}

func name(file string, id uint32) string {
	if f := line(file, id); f != nil {
		return f[0]
	}
	return strconv.FormatUint(uint64(id), 10)
}

// line finds the first line whose third field is id (passwd(5), group(5)).
func line(file string, id uint32) []string {
	f, err := os.Open(file)
	if err != nil {
		return nil
	}
	defer f.Close()
	want := strconv.FormatUint(uint64(id), 10)
	for s := bufio.NewScanner(f); s.Scan(); {
		if fields := strings.Split(s.Text(), ":"); len(fields) >= 3 && fields[0] != "" && fields[2] == want {
			return fields
		}
	}
	return nil
}
