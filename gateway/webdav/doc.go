// Package webdav shows a file tree that grows while it is read to WebDAV
// clients. Nothing can be written.
//
// The protocol itself is golang.org/x/net/webdav's, which is what Workbench and
// arvados-client were made for; here is what makes it read only and keeps every
// answer consistent in itself.
package webdav
