//go:build chaos && unix && !linux

package chaos

import "syscall"

func dieWithParent() *syscall.SysProcAttr { return nil }
