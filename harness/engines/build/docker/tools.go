//go:build tools

// Package docker pins Docker Engine's daemon, whose own module has no go.mod.
package docker

import _ "github.com/docker/docker/cmd/dockerd"
