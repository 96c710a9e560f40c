package journal

import (
	"bufio"
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"strconv"
)

// A log file: the magic, the length of the sealed file key (4 bytes) and that;
// then batches. A batch: "TRB1", the length of what is sealed (4 bytes), its
// number in the file (8 bytes), and its records sealed with AES-256-GCM under the
// file's key, the number being the nonce. All numbers are little endian. A
// record: its length as a varint, and its bytes.
const (
	logMagic    = "ctrlog01"
	batchMagic  = "TRB1"
	batchHeader = len(batchMagic) + 4 + 8
	maxBatch    = 64 << 20
	mostAtOnce  = maxBatch / 4
	baseBatch   = 256 << 10
)

func appendRecord(to, record []byte) []byte {
	to = binary.AppendUvarint(to, uint64(len(record)))
	return append(to, record...)
}

func cutRecord(batch []byte) (record, rest []byte, ok bool) {
	n, size := binary.Uvarint(batch)
	if size <= 0 || n > uint64(len(batch)-size) {
		return nil, nil, false
	}
	end := size + int(n)
	return batch[size:end:end], batch[end:], true
}

// cutBatch takes off as many records as one batch holds.
func cutBatch(records []byte) (batch, rest []byte) {
	end := len(records)
	if end > mostAtOnce {
		end = 0
		for {
			_, rest, ok := cutRecord(records[end:])
			next := len(records) - len(rest)
			if !ok || end > 0 && next > mostAtOnce {
				break
			}
			end = next
		}
	}
	return records[:end], records[end:]
}

// appendFile is what a log needs of a file.
type appendFile interface {
	io.Writer
	io.Closer
	Sync() error
}

func createAppend(path string) (appendFile, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|carefulFlags, 0o600)
}

// logFile is one that is being written.
type logFile struct {
	appendFile
	path   string
	aead   cipher.AEAD
	number uint64
	kept   bool // it holds what was acknowledged
	buf    []byte
}

func (l *Log) aad(kind string, number uint64) []byte {
	return AAD(domain, "log", l.name, kind, strconv.FormatUint(number, 10))
}

// newFile begins a file with a key of its own, and makes its name durable.
func (l *Log) newFile(kind string, number uint64, keys *Keyring, path string) (_ *logFile, err error) {
	f, err := l.create(path)
	if errors.Is(err, os.ErrExist) && kind == kindBase { // left by a process that died
		if err = os.Remove(path); err == nil {
			f, err = l.create(path)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("log %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			// Nothing of it was ever acknowledged, and on a full disk there would
			// soon be very many.
			err = fmt.Errorf("log %s: %w", path, errors.Join(err, f.Close()))
			_ = os.Remove(path)
		}
	}()
	key := make([]byte, keySize)
	_, _ = rand.Read(key) // never fails
	defer clear(key)
	sealed := keys.Seal(l.aad(kind, number), l.name, key)
	head := append([]byte(logMagic), binary.LittleEndian.AppendUint32(nil, uint32(len(sealed)))...)
	if _, err := f.Write(append(head, sealed...)); err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	if err := syncDir(l.dir); err != nil {
		return nil, err
	}
	return &logFile{appendFile: f, path: path, aead: fileAEAD(key)}, nil
}

func fileAEAD(key []byte) cipher.AEAD {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // only for a key of another length
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err) // only for another block size
	}
	return aead
}

func batchNonce(number uint64) []byte {
	nonce := make([]byte, 12)
	binary.LittleEndian.PutUint64(nonce[4:], number)
	return nonce
}

// append writes one batch and says how long it was.
func (f *logFile) append(records []byte) (int, error) {
	f.number++
	size := len(records) + f.aead.Overhead()
	if size > maxBatch {
		return 0, fmt.Errorf("a batch of %d bytes is too long", size)
	}
	f.buf = append(f.buf[:0], batchMagic...)
	f.buf = binary.LittleEndian.AppendUint32(f.buf, uint32(size))
	f.buf = binary.LittleEndian.AppendUint64(f.buf, f.number)
	f.buf = f.aead.Seal(f.buf, batchNonce(f.number), records, nil)
	n, err := f.Write(f.buf)
	if cap(f.buf) > 4<<20 {
		f.buf = nil
	}
	return n, err
}

// fill writes a whole base.
func (f *logFile) fill(records iter.Seq[[]byte]) error {
	var batch []byte
	defer func() { clear(batch[:cap(batch)]) }()
	for record := range records {
		batch = appendRecord(batch, record)
		if len(batch) < baseBatch {
			continue
		}
		if _, err := f.append(batch); err != nil {
			return err
		}
		batch = batch[:0]
	}
	if len(batch) > 0 {
		if _, err := f.append(batch); err != nil {
			return err
		}
	}
	return f.Sync()
}

// logReader reads batches. What does not authenticate is skipped, up to where
// the next one begins.
type logReader struct {
	r       *bufio.Reader
	aead    cipher.AEAD
	damaged bool
	sealed  []byte
}

// openLogReader reads the head. io.ErrUnexpectedEOF says that it is cut off.
func openLogReader(f io.Reader, keys *Keyring, aad []byte, name string) (*logReader, error) {
	r := bufio.NewReaderSize(f, 1<<20)
	head := make([]byte, len(logMagic)+4)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, io.ErrUnexpectedEOF
	}
	n := binary.LittleEndian.Uint32(head[len(logMagic):])
	if !bytes.HasPrefix(head, []byte(logMagic)) || n > 1<<10 {
		return nil, ErrDamaged
	}
	sealed := make([]byte, n)
	if _, err := io.ReadFull(r, sealed); err != nil {
		return nil, io.ErrUnexpectedEOF
	}
	key, err := keys.Open(aad, name, sealed)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	if len(key) != keySize {
		return nil, ErrDamaged
	}
	return &logReader{r: r, aead: fileAEAD(key)}, nil
}

// ahead yields the batches, and reads and opens the next ones meanwhile.
func (r *logReader) ahead() iter.Seq2[[]byte, error] {
	type read struct {
		batch []byte
		err   error
	}
	return func(yield func([]byte, error) bool) {
		batches, stop, ended := make(chan read, 4), make(chan struct{}), make(chan struct{})
		go func() {
			defer close(ended)
			defer close(batches)
			for {
				batch, err := r.next()
				if errors.Is(err, io.EOF) {
					return
				}
				select {
				case batches <- read{batch, err}:
				case <-stop:
					return
				}
				if err != nil {
					return
				}
			}
		}()
		defer func() { <-ended }()
		defer close(stop)
		for b := range batches {
			if !yield(b.batch, b.err) {
				return
			}
			clear(b.batch)
		}
	}
}

// next returns the records of the next batch, or io.EOF. A batch that is cut off
// is the end, too: its writer died.
func (r *logReader) next() ([]byte, error) {
	for {
		head, err := r.r.Peek(batchHeader)
		if len(head) < batchHeader {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.EOF
			}
			return nil, err
		}
		size := int(binary.LittleEndian.Uint32(head[len(batchMagic):]))
		number := binary.LittleEndian.Uint64(head[len(batchMagic)+4:])
		if string(head[:len(batchMagic)]) != batchMagic || size > maxBatch || size < r.aead.Overhead() {
			r.damaged = true
			_, _ = r.r.Discard(1) // it was peeked
			continue
		}
		_, _ = r.r.Discard(batchHeader)
		if cap(r.sealed) < size {
			r.sealed = make([]byte, size)
		}
		n, err := io.ReadFull(r.r, r.sealed[:size])
		switch {
		case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
			// Cut off, or its length is wrong, and it swallowed others.
			if at := bytes.Index(r.sealed[:n], []byte(batchMagic)); at >= 0 {
				r.damaged = true
				r.r = bufio.NewReaderSize(bytes.NewReader(bytes.Clone(r.sealed[at:n])), 1<<20)
				continue
			}
			return nil, io.EOF
		case err != nil:
			return nil, err
		}
		plain, err := r.aead.Open(nil, batchNonce(number), r.sealed[:size], nil)
		if err != nil {
			r.damaged = true
			rest := io.MultiReader(bytes.NewReader(bytes.Clone(r.sealed[:size])), r.r)
			r.r = bufio.NewReaderSize(rest, 1<<20)
			continue // a batch may begin within
		}
		return plain, nil
	}
}
