package store

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/ncruces/go-sqlite3"
)

// readers is how many read transactions run at once; more wait. Reads are
// short, and each connection costs about 250 kB.
const readers = 4

// stmtCache is how many prepared statements one connection keeps, and
// stmtCacheText the longest text of one that is kept.
const (
	stmtCache     = 128
	stmtCacheText = 4096
)

// Options of Open.
type Options struct {
	// NoSync gives up surviving a power failure, for throw-away clusters. A
	// killed process still loses nothing.
	NoSync bool
}

// DB is an open database file. It is safe for concurrent use.
type DB struct {
	path   string
	pragma string
	write  chan *conn    // holds the writer while nobody writes
	idle   chan *conn    // readers not in use
	slots  chan struct{} // one token for each reader that may be made
	closed chan struct{}
}

// conn is one SQLite connection with its prepared statements. It belongs to
// one goroutine at a time.
type conn struct {
	c     *sqlite3.Conn
	stmts map[string]*sqlite3.Stmt
}

// ErrClosed is returned for every use of a closed database.
var ErrClosed = errors.New("database is closed")

// Open opens the file at path, making it with mode 0600 if it does not exist,
// and applies outstanding migrations.
func Open(path string, o Options) (*DB, error) {
	if err := makePrivate(path, path+"-wal", path+"-shm"); err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	db := &DB{
		path:   path,
		pragma: "PRAGMA busy_timeout=10000; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA trusted_schema=OFF; PRAGMA temp_store=MEMORY; PRAGMA journal_size_limit=16777216;",
		write:  make(chan *conn, 1),
		idle:   make(chan *conn, readers),
		slots:  make(chan struct{}, readers),
		closed: make(chan struct{}),
	}
	if o.NoSync {
		db.pragma += " PRAGMA synchronous=OFF;"
	}
	w, err := db.connect()
	if err == nil {
		if err = migrate(w); err != nil {
			w.close()
		}
	}
	if err == nil { // a new database got another log; nothing secret is in it yet
		if err = makePrivate(path + "-wal"); err != nil {
			w.close()
		}
	}
	if errors.Is(err, sqlite3.NOTADB) || errors.Is(err, sqlite3.CORRUPT) {
		return nil, fmt.Errorf("open database %s: %w: the file is damaged or not ours; restore it, or use another directory", path, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	db.write <- w
	for range readers {
		db.slots <- struct{}{}
	}
	return db, nil
}

// makePrivate makes files for root only, creating them if they are not there: they
// hold secrets, and SQLite would use the umask's mode. An empty log is no log to
// it.
func makePrivate(paths ...string) error {
	for _, path := range paths {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Chmod(0o600), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

func (db *DB) connect() (*conn, error) {
	c, err := sqlite3.Open(db.path)
	if err != nil {
		return nil, err
	}
	if err := c.Exec(db.pragma); err != nil {
		c.Close()
		return nil, err
	}
	if err := registerFunctions(c); err != nil {
		c.Close()
		return nil, err
	}
	return &conn{c: c, stmts: map[string]*sqlite3.Stmt{}}, nil
}

func (c *conn) close() error {
	for _, s := range c.stmts {
		s.Close()
	}
	return c.c.Close()
}

// prepare returns the statement for a text, and how to give it back.
func (c *conn) prepare(sql string) (*sqlite3.Stmt, func() error, error) {
	if s := c.stmts[sql]; s != nil {
		return s, s.Reset, nil
	}
	if len(c.stmts) >= stmtCache {
		for k, s := range c.stmts { // any will do: texts are few
			s.Close()
			delete(c.stmts, k)
			break
		}
	}
	s, _, err := c.c.Prepare(sql)
	if err != nil {
		return nil, nil, fmt.Errorf("%w in %.200s", err, sql)
	}
	if len(sql) > stmtCacheText {
		return s, s.Close, nil
	}
	c.stmts[sql] = s
	return s, s.Reset, nil
}

// View runs fn in a read transaction: it sees one state of the database.
func (db *DB) View(ctx context.Context, fn func(*Tx) error) error {
	var c *conn
	select {
	case c = <-db.idle:
	default:
		select {
		case c = <-db.idle:
		case <-db.slots:
			var err error
			if c, err = db.connect(); err != nil {
				db.slots <- struct{}{}
				return fmt.Errorf("open database: %w", err)
			}
		case <-ctx.Done():
			return ctx.Err()
		case <-db.closed:
			return ErrClosed
		}
	}
	defer func() { db.idle <- c }()
	c.c.SetInterrupt(ctx)
	defer c.c.SetInterrupt(context.Background())
	return c.transact("BEGIN DEFERRED", fn)
}

// Update runs fn in the one write transaction there is at a time, and commits
// if fn returns nil. ctx is only heeded while waiting for the turn.
func (db *DB) Update(ctx context.Context, fn func(*Tx) error) error {
	select {
	case c := <-db.write:
		defer func() { db.write <- c }()
		return c.transact("BEGIN IMMEDIATE", fn)
	case <-ctx.Done():
		return ctx.Err()
	case <-db.closed:
		return ErrClosed
	}
}

func (c *conn) transact(begin string, fn func(*Tx) error) (err error) {
	if err := c.run(begin); err != nil {
		return err
	}
	done := false
	defer func() {
		if !done { // also when fn panics: the connection stays usable
			c.c.SetInterrupt(context.Background())
			if !c.c.GetAutocommit() {
				if e := c.run("ROLLBACK"); e != nil {
					err = errors.Join(err, e)
				}
			}
		}
	}()
	if err := fn(&Tx{c: c}); err != nil {
		return err
	}
	if err := c.run("COMMIT"); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	done = true
	return nil
}

func (c *conn) run(sql string) error {
	s, done, err := c.prepare(sql)
	if err != nil {
		return err
	}
	if err := s.Exec(); err != nil {
		done() // repeats the error
		return err
	}
	return done()
}

// Close waits for the running transactions, moves the log into the database
// file and closes it.
func (db *DB) Close() error {
	close(db.closed)
	var errs []error
	w := <-db.write
	for open := readers; open > 0; open-- {
		select {
		case c := <-db.idle:
			errs = append(errs, c.close())
		case <-db.slots:
		}
	}
	_, _, err := w.c.WALCheckpoint("main", sqlite3.CHECKPOINT_TRUNCATE)
	errs = append(errs, err, w.close())
	return errors.Join(errs...)
}
