package config

import (
	"errors"
	"net/netip"
	"path/filepath"
	"strings"
)

// Networks a container can get when it gets one; CNIPrefix and a name is a
// fourth.
const (
	NetworkBridge = "bridge"
	NetworkHost   = "host"
	NetworkNone   = "none"
	CNIPrefix     = "cni:"
)

var networkSetting = setting{
	"network", "network of containers that get one: bridge (built in), host, none or cni:NAME", NetworkBridge,
	func(s *Site, text string) error {
		if name, ok := strings.CutPrefix(text, CNIPrefix); ok {
			if name == "" || strings.ContainsAny(name, "/ \t\n") {
				return errors.New("cni: needs the name of a CNI network")
			}
		} else if text != NetworkBridge && text != NetworkHost && text != NetworkNone {
			return errors.New("must be bridge, host, none or cni:NAME")
		}
		s.Network = text
		return nil
	},
	func(s *Site) string { return s.Network },
}

var bridgeSetting = setting{
	"network-bridge", "name of the interface that network bridge makes", "crunch0",
	func(s *Site, text string) error {
		const most = 15 // IFNAMSIZ - 1
		good := func(c rune) bool {
			return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("-_.", c)
		}
		if text == "" || len(text) > most || strings.Trim(text, ".") == "" || strings.IndexFunc(text, func(c rune) bool { return !good(c) }) >= 0 {
			return errors.New("must be at most 15 letters, digits and the characters -_.")
		}
		s.Bridge = text
		return nil
	},
	func(s *Site) string { return s.Bridge },
}

var subnetSetting = setting{
	"network-subnet", "IPv4 subnet of network bridge, such as 172.30.0.0/20; empty: one that the host has no route to", "",
	func(s *Site, text string) error {
		if text == "" {
			s.Subnet = netip.Prefix{}
			return nil
		}
		p, err := netip.ParsePrefix(text)
		if err != nil || !p.Addr().Is4() || p.Masked() != p || p.Bits() < 8 || p.Bits() > 29 {
			return errors.New("must be an IPv4 network of 8 to 29 bits, such as 172.30.0.0/20")
		}
		s.Subnet = p
		return nil
	},
	func(s *Site) string {
		if !s.Subnet.IsValid() {
			return ""
		}
		return s.Subnet.String()
	},
}

var cniPluginsSetting = setting{
	"cni-plugin-dirs", "directories with CNI plugins, separated by colons", "/opt/cni/bin:/usr/lib/cni:/usr/libexec/cni",
	func(s *Site, text string) error {
		s.CNIPluginDirs = nil
		for _, dir := range filepath.SplitList(text) {
			if !filepath.IsAbs(dir) {
				return errors.New("must be absolute paths separated by colons")
			}
			s.CNIPluginDirs = append(s.CNIPluginDirs, filepath.Clean(dir))
		}
		return nil
	},
	func(s *Site) string { return strings.Join(s.CNIPluginDirs, ":") },
}

var peersSetting = setting{
	"network-peers", "whether containers on network bridge reach each other: on or off", "on",
	func(s *Site, text string) (err error) { s.Peers, err = parseSwitch(text); return },
	func(s *Site) string { return showSwitch(s.Peers) },
}

func parseSwitch(text string) (bool, error) {
	switch strings.ToLower(text) {
	case "on", "true", "yes", "1":
		return true, nil
	case "off", "false", "no", "0":
		return false, nil
	}
	return false, errors.New("must be on or off")
}

func showSwitch(on bool) string {
	if on {
		return "on"
	}
	return "off"
}
