package network

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// packetSocket sends and receives frames in a container.
func packetSocket(t *testing.T, ns *os.File) int {
	t.Helper()
	const every = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // network byte order
	fd := -1
	must(t, inside(ns, func() (err error) {
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, every); err != nil {
			return err
		}
		i, err := net.InterfaceByName(ifName)
		if err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: every, Ifindex: i.Index})
	}))
	t.Cleanup(func() { _ = unix.Close(fd) })
	must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(patience / time.Second)}))
	return fd
}

func frame(from net.HardwareAddr, kind uint16, payload []byte) []byte {
	f := slices.Concat([]byte{255, 255, 255, 255, 255, 255}, from)
	return append(binary.BigEndian.AppendUint16(f, kind), payload...)
}

func arp(mac net.HardwareAddr, ip netip.Addr) []byte {
	return slices.Concat([]byte{0, 1, 8, 0, 6, 4, 0, 2}, mac, ip.AsSlice(), mac, ip.AsSlice())
}

// ip4 is a datagram without a content that anybody knows.
func ip4(source netip.Addr, text string) []byte {
	h := []byte{0x45, 0, 0, byte(20 + len(text)), 0, 0, 0, 0, 1, 253, 0, 0}
	h = slices.Concat(h, source.AsSlice(), []byte{255, 255, 255, 255})
	sum := uint32(0)
	for i := 0; i < len(h); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(h[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(h[10:], ^uint16(sum))
	return append(h, text...)
}

func ip6(source netip.Addr, next byte, payload []byte) []byte {
	h := []byte{0x60, 0, 0, 0, 0, byte(len(payload)), next, 255}
	return slices.Concat(h, source.AsSlice(), netip.MustParseAddr("ff02::1").AsSlice(), payload)
}

// A container cannot pretend to its neighbours, nor to the host, that it is somebody
// else, or that somebody else's address is its own.
func TestAddressesOfOthers(t *testing.T) {
	newWorld(t, true)
	b := newBridge(t)
	var all []*Connection
	var spaces []*os.File
	for i := range 2 {
		ns := newNamespace(t)
		c, err := b.Connect(t.Context(), fmt.Sprintf("zzzzz-dz642-%015d", i), ns)
		must(t, err)
		defer func() { must(t, c.Close(context.Background())) }()
		all, spaces = append(all, c), append(spaces, ns)
	}
	attacker, neighbour, gateway := all[0].Addresses, all[1].Addresses, all[0].Gateways
	mac, theirMAC := hardwareAddr(attacker[0]), hardwareAddr(neighbour[0])
	local := netip.MustParseAddr("fe80::1234")
	padded := func(b []byte, text string) []byte { return append(b, text...) }
	na := func(target netip.Addr) []byte {
		return slices.Concat([]byte{136, 0, 0, 0, 0x20, 0, 0, 0}, target.AsSlice(), []byte{2, 1}, mac)
	}
	// After the header of hop-by-hop options, which says what comes next.
	behind := func(next byte, payload []byte) []byte {
		return slices.Concat([]byte{next, 0, 1, 4, 0, 0, 0, 0}, payload)
	}
	spoofed := map[string][]byte{
		"hardware address":                 frame(theirMAC, unix.ETH_P_IP, ip4(attacker[0], "spoofed")),
		"neighbour's address":              frame(mac, unix.ETH_P_IP, ip4(neighbour[0], "spoofed")),
		"gateway's address":                frame(mac, unix.ETH_P_IP, ip4(gateway[0], "spoofed")),
		"address of the world":             frame(mac, unix.ETH_P_IP, ip4(farRouter, "spoofed")),
		"ARP, neighbour":                   frame(mac, unix.ETH_P_ARP, padded(arp(mac, neighbour[0]), "spoofed")),
		"ARP, gateway":                     frame(mac, unix.ETH_P_ARP, padded(arp(mac, gateway[0]), "spoofed")),
		"ARP, neighbour's both":            frame(mac, unix.ETH_P_ARP, padded(arp(theirMAC, neighbour[0]), "spoofed")),
		"IPv6, neighbour's address":        frame(mac, unix.ETH_P_IPV6, ip6(neighbour[1], 253, []byte("spoofed"))),
		"IPv6, address of the world":       frame(mac, unix.ETH_P_IPV6, ip6(farRouter6, 253, []byte("spoofed"))),
		"router advertisement":             frame(mac, unix.ETH_P_IPV6, ip6(local, 58, padded([]byte{134, 0, 0, 0}, "spoofed"))),
		"router advertisement, options":    frame(mac, unix.ETH_P_IPV6, ip6(local, 0, behind(58, padded([]byte{134, 0, 0, 0}, "spoofed")))),
		"redirect":                         frame(mac, unix.ETH_P_IPV6, ip6(local, 58, padded([]byte{137, 0, 0, 0}, "spoofed"))),
		"neighbour advertisement":          frame(mac, unix.ETH_P_IPV6, ip6(local, 58, padded(na(neighbour[1]), "spoofed"))),
		"neighbour advertisement, gateway": frame(mac, unix.ETH_P_IPV6, ip6(attacker[1], 58, padded(na(gateway[1]), "spoofed"))),
		"neighbour advertisement, options": frame(mac, unix.ETH_P_IPV6, ip6(local, 0, behind(58, padded(na(neighbour[1]), "spoofed")))),
		"another protocol":                 frame(mac, 0x88b5, []byte("spoofed")),
		"tagged":                           frame(mac, 0x88a8, padded([]byte{0, 1, 8, 0}, string(ip4(neighbour[0], "spoofed")))),
	}
	genuine := map[string][]byte{
		"IPv4":                    frame(mac, unix.ETH_P_IP, ip4(attacker[0], "genuine IPv4")),
		"ARP":                     frame(mac, unix.ETH_P_ARP, padded(arp(mac, attacker[0]), "genuine ARP")),
		"IPv6":                    frame(mac, unix.ETH_P_IPV6, ip6(attacker[1], 253, []byte("genuine IPv6"))),
		"link-local":              frame(mac, unix.ETH_P_IPV6, ip6(local, 253, []byte("genuine link-local"))),
		"neighbour advertisement": frame(mac, unix.ETH_P_IPV6, ip6(attacker[1], 58, padded(na(attacker[1]), "genuine neighbour advertisement"))),
	}
	send := func(f []byte) {
		t.Helper()
		fd := packetSocket(t, spaces[0])
		_, err := unix.Write(fd, f)
		must(t, err)
	}
	receiver := packetSocket(t, spaces[1])
	check := func() {
		t.Helper()
		for _, f := range spoofed {
			send(f)
		}
		for _, f := range genuine {
			send(f)
		}
		buf := make([]byte, 2048)
		for missing := len(genuine); missing > 0; {
			n, err := unix.Read(receiver, buf)
			if err == unix.EINTR {
				continue
			}
			must(t, err)
			if got := buf[:n]; bytes.Contains(got, []byte("genuine")) {
				missing--
			} else if bytes.Contains(got, []byte("spoofed")) {
				for name, f := range spoofed {
					if bytes.Equal(f, got) {
						t.Errorf("the neighbour gets: %s", name)
					}
				}
			}
		}
	}
	check()
	// The host's firewall is loaded anew, and another container begins.
	nft(t, "flush ruleset")
	c, err := b.Connect(t.Context(), "zzzzz-dz642-other0000000000", newNamespace(t))
	must(t, err)
	must(t, c.Close(context.Background()))
	check()
}
