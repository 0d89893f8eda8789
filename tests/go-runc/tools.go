//go:build tools

// Package tools pins the runc that gives pods users of their own. Nothing imports it.
package tools

import (
	_ "github.com/opencontainers/runc"
)
