//go:build tools

// Package tools keeps the modules of programs that tests run but do not import in go.mod.
package tools

import _ "k8s.io/kubernetes/cmd/kubectl"
