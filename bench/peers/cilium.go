// cilium/ebpf as its users drive it: typed pointers for one element, slices for a batch, ReadInto for
// a ring or a perf buffer. Speaks the protocol of child.py. Built with Debian's package: GO111MODULE=off.
package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/perf"
	"github.com/cilium/ebpf/ringbuf"
)

type config struct {
	Map     int    `json:"map"`
	Ring    int    `json:"ring"`
	Keys    int    `json:"keys"`
	Entries int    `json:"entries"`
	Block   int    `json:"block"`
	Records int    `json:"records"`
	Perf    int    `json:"perf"`
	Pages   int    `json:"pages"`
	File    string `json:"file"`
	Type    string `json:"type"`
	Version string `json:"version"`
	Cpu     int    `json:"cpu"`
}

type answer struct {
	Ns      int64  `json:"ns"`
	Waited  int64  `json:"waited"`
	Entries int    `json:"entries"`
	Keys    uint64 `json:"keys"`
	Values  uint64 `json:"values"`
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func total(words []uint64) (sum uint64) {
	for _, word := range words {
		sum += word
	}
	return
}

// The whole map by BatchLookup, or BatchLookupAndDelete; the end is ErrKeyNotExist, with what came
// before it.
func read(m *ebpf.Map, keys, values []uint64, chunk int, take bool) int {
	batch := m.BatchLookup
	if take {
		batch = m.BatchLookupAndDelete
	}
	var cursor uint64
	var previous interface{}
	done := 0
	for {
		end := done + chunk
		if end > len(keys) {
			end = len(keys)
		}
		n, err := batch(previous, &cursor, keys[done:end], values[done:end], nil)
		done += n
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return done
		}
		must(err)
		previous = cursor
	}
}

// Pin this thread alone: Go's others (its collector's) take no time from it.
func pin(cpu int) {
	var set [16]uint64
	set[cpu/64] |= 1 << (cpu % 64)
	_, _, failed := syscall.RawSyscall(syscall.SYS_SCHED_SETAFFINITY, 0, unsafe.Sizeof(set),
		uintptr(unsafe.Pointer(&set)))
	if failed != 0 {
		must(failed)
	}
}

// The nanoseconds in which this thread was ready to run, and other work had its CPU.
func waited() (ns int64) {
	var ran int64
	if told, err := os.ReadFile("/proc/thread-self/schedstat"); err == nil {
		fmt.Sscan(string(told), &ran, &ns)
	}
	return
}

// The chunk that suits BatchLookup best on this machine.
func fastest(m *ebpf.Map, keys, values []uint64) (best int) {
	least := time.Duration(1 << 62)
	for turn := 0; turn < 3; turn++ {
		for chunk := 256; chunk <= 1<<16; chunk *= 4 {
			start := time.Now()
			read(m, keys, values, chunk, false)
			if took := time.Since(start); took < least {
				least, best = took, chunk
			}
		}
	}
	return
}

// The sum of what c/btf.c has as `member`, of a struct's members and those of anonymous ones in it.
func digest(members []btf.Member, base btf.Bits) (sum uint64) {
	for _, m := range members {
		if m.Name == "" {
			switch inner := btf.UnderlyingType(m.Type).(type) {
			case *btf.Struct:
				sum += digest(inner.Members, base+m.Offset)
			case *btf.Union:
				sum += digest(inner.Members, base+m.Offset)
			}
			continue
		}
		bits := m.BitfieldSize
		if bits == 0 {
			size, err := btf.Sizeof(m.Type)
			must(err)
			bits = btf.Bits(8 * size)
		}
		if bits == 0 {
			continue
		}
		hash := fnv.New64a()
		hash.Write(append([]byte(m.Name), 0))
		must(binary.Write(hash, binary.LittleEndian, [2]uint32{uint32(base + m.Offset), uint32(bits)}))
		sum += hash.Sum64()
	}
	return
}

// A struct out of a file of BTF.
func load(file, name string) (found *btf.Struct) {
	spec, err := btf.LoadSpec(file)
	must(err)
	must(spec.TypeByName(name, &found))
	return
}

func main() {
	runtime.LockOSThread()
	var c config
	must(json.Unmarshal([]byte(os.Args[len(os.Args)-1]), &c))
	pin(c.Cpu)
	words := []uint64{}
	var m *ebpf.Map
	var rd *ringbuf.Reader
	var err error
	if c.Map >= 0 {
		m, err = ebpf.NewMapFromFD(c.Map)
		must(err)
		file := os.NewFile(uintptr(c.Keys), "keys")
		info, err := file.Stat()
		must(err)
		raw := make([]byte, info.Size())
		_, err = file.ReadAt(raw, 0)
		must(err)
		words = unsafe.Slice((*uint64)(unsafe.Pointer(&raw[0])), len(raw)/8)
	}
	if c.Ring >= 0 {
		ring, err := ebpf.NewMapFromFD(c.Ring)
		must(err)
		rd, err = ringbuf.NewReader(ring)
		must(err)
	}
	var events *perf.Reader
	if c.Perf >= 0 {
		array, err := ebpf.NewMapFromFD(c.Perf)
		must(err)
		// A wake or two a block, of records of 48 bytes: what stays below is not read.
		events, err = perf.NewReaderWithOptions(array, c.Pages*os.Getpagesize(),
			perf.ReaderOptions{Watermark: c.Records * 48 / 2})
		must(err)
	}
	var layout *btf.Struct
	if c.Type != "" {
		layout = load(c.File, c.Type) // whether it can be had at all
	}
	room := c.Entries + 1024
	keys, values := make([]uint64, room), make([]uint64, room)
	out, tripled := make([]uint64, c.Block), make([]uint64, c.Block)
	record, sample := ringbuf.Record{}, perf.Record{}
	chunk := 0
	// As gc.disable() in Python: what is collected, between the blocks.
	debug.SetGCPercent(-1)
	fmt.Printf("{\"version\": %q}\n", c.Version+", "+runtime.Version())

	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var op string
		var number, check int
		_, err := fmt.Sscan(lines.Text(), &op, &number, &check)
		must(err)
		part := words
		if c.Block > 0 && len(words) > 0 {
			at := number % (len(words) / c.Block) * c.Block
			part = words[at : at+c.Block]
		}
		if (op == "read" || op == "drain") && chunk == 0 {
			chunk = fastest(m, keys, values)
		}
		if op == "put" {
			for i, word := range part {
				tripled[i] = word * 3
			}
		}
		a := answer{}
		runtime.GC()
		waits := waited()
		start := time.Now()
		switch op {
		case "lookup", "given":
			for i := range part {
				must(m.Lookup(&part[i], &out[i]))
			}
			a.Entries = len(part)
		case "update":
			for i := range part {
				value := part[i] * 3
				must(m.Put(&part[i], &value))
			}
			a.Entries = len(part)
		case "delete":
			for i := range part {
				must(m.Delete(&part[i]))
			}
			a.Entries = len(part)
		case "put":
			a.Entries, err = m.BatchUpdate(part, tripled, nil)
			must(err)
		case "read", "drain":
			a.Entries = read(m, keys, values, chunk, op == "drain")
		case "walk":
			entries := m.Iterate()
			n := 0
			for entries.Next(&keys[n], &values[n]) {
				n++
			}
			must(entries.Err())
			a.Entries = n
		case "ring":
			for n := 0; n < c.Records; n++ {
				must(rd.ReadInto(&record))
				a.Values += binary.LittleEndian.Uint64(record.RawSample)
			}
			a.Entries = c.Records
		case "perf":
			for a.Entries < c.Records {
				must(events.ReadInto(&sample))
				if sample.LostSamples > 0 {
					must(fmt.Errorf("%d samples lost", sample.LostSamples))
				}
				a.Values += binary.LittleEndian.Uint64(sample.RawSample)
				a.Entries++
			}
		case "btf":
			layout = load(c.File, c.Type)
			a.Entries = 1
		}
		a.Ns = time.Since(start).Nanoseconds()
		a.Waited = waited() - waits
		if check == 1 {
			switch op {
			case "lookup", "given":
				a.Values = total(out)
			case "read", "walk", "drain":
				a.Keys, a.Values = total(keys[:a.Entries]), total(values[:a.Entries])
			case "btf":
				a.Keys, a.Values = uint64(layout.Size), digest(layout.Members, 0)
			}
		}
		line, err := json.Marshal(a)
		must(err)
		fmt.Println(string(line))
	}
}
