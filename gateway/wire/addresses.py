"""Which IP addresses a call may be sent to: public unicast ones, and private ones where the operator says so. Pure.

The networks are those of IANA's special-purpose registries, written out: what `ipaddress` calls global differs from
one Python to the next. Whatever is not known to be public is refused.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

_SPECIAL_V4 = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's platform service, on a public number
        "169.254.0.0/16",  # link-local; metadata services of most clouds
        "172.16.0.0/12",
        "192.0.0.0/24",  # protocol assignments; metadata service of Oracle's cloud
        "192.0.2.0/24",  # documentation, like the other two below
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
_GLOBAL_V6 = ip_network("2000::/3")
"""All that IANA has given out for global unicast. Loopback, unspecified, IPv4-compatible, unique local, link-local
and multicast addresses lie outside of it."""
_SPECIAL_V6 = tuple(
    ip_network(text)
    for text in (
        "2001::/23",  # protocol assignments, with Teredo
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which embeds any IPv4 address
        "3fff::/20",  # documentation
    )
)
_NAT64 = ip_network("64:ff9b::/96")
"""Resolvers of IPv6-only networks answer with it: as good as the IPv4 address in its last 32 bits."""
_PRIVATE = tuple(
    ip_network(text)
    for text in (
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "::1/128",
        "fc00::/7",
    )
)
_METADATA = tuple(ip_network(text) for text in ("100.100.100.200/32", "fd00:ec2::/32", "fd20:ce::/32"))
"""Metadata services of clouds on private numbers."""


def is_allowed(address: str, *, private: bool) -> bool:
    """May a call be sent to `address` (an IPv4 or IPv6 literal, with or without a zone)?

    `private`: the operator vouches for the host's name, so it may also be a private or loopback address; link-local
    addresses and metadata services stay closed. Raise ValueError for what is no address.
    """
    ip = ip_address(address)
    if isinstance(ip, IPv6Address):
        if ip in _NAT64:
            return _is_public(IPv4Address(int(ip) & 0xFFFFFFFF))
        ip = ip.ipv4_mapped or ip
    return _is_public(ip) or (private and _is_private(ip))


def _is_public(ip: IPv4Address | IPv6Address) -> bool:
    if isinstance(ip, IPv4Address):
        return not any(ip in network for network in _SPECIAL_V4)
    return ip in _GLOBAL_V6 and not any(ip in network for network in _SPECIAL_V6)


def _is_private(ip: IPv4Address | IPv6Address) -> bool:
    return any(ip in network for network in _PRIVATE) and not any(ip in network for network in _METADATA)
