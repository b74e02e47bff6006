//go:build tools

// Package soci pins the SOCI snapshotter and its command.
package soci

import (
	_ "github.com/awslabs/soci-snapshotter/cmd/soci"
	_ "github.com/awslabs/soci-snapshotter/cmd/soci-snapshotter-grpc"
)
