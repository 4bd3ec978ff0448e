// Package keep speaks to Keep, the content-addressed block store of Arvados,
// and shows what is stored there as file trees.
//
// The vocabulary, from the bottom up:
//
//   - A block is up to 64 MiB of bytes, named by its MD5. A Locator is that
//     name with a size and hints, among them the permission signature.
//   - A BlockReader and a BlockWriter move whole blocks. Client is the one that
//     talks to Keep servers; Cache is a decorator of any other.
//   - A manifest is the text that says which bytes of which blocks make up
//     which files. Its portable data hash identifies the content.
//   - A Collection is a manifest as a file tree: read at random, written by
//     appending, copied by reference, and turned into a manifest again.
//
// File names are byte strings: a name that is not UTF-8 is a legal name on the
// container's file system and stays exactly as it is here.
//
// The package knows neither containers nor the Arvados API: who wants Keep
// services listed or a collection record saved passes a function in.
package keep
