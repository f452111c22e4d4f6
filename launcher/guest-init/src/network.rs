// SPDX-License-Identifier: GPL-2.0
//! What a network is lacking when the kernel has configured the interface that its command line
//! names; or all of it, where the kernel does not (most that are shipped do not: CONFIG_IP_PNP), or the
//! interface came with a module, later.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use nix::errno::Errno;
use nix::libc;
use nix::mount::{mount, MsFlags};

use crate::{Doing, Failure};

/// The file in which Linux says what `ip=` has told it of name servers, in the form of
/// [`RESOLV_CONF`].
const TOLD: &str = "/proc/net/pnp";
/// What the kernel was told.
const COMMAND_LINE: &str = "/proc/cmdline";
/// A copy of that: a file there cannot be mounted elsewhere.
const COPY: &str = "/run/lg-resolv.conf";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// An interface, as `ip=` says (linux:Documentation/admin-guide/nfs/nfsroot.rst).
#[derive(Debug, PartialEq, Eq)]
struct Interface {
    name: String,
    address: Ipv4Addr,
    netmask: Ipv4Addr,
    gateway: Option<Ipv4Addr>,
    name_server: Option<Ipv4Addr>,
}

impl Interface {
    /// The one that a kernel's command line gives an address to, if it names one.
    fn of(command_line: &str) -> Option<Self> {
        let words = command_line.split_ascii_whitespace();
        let told = words.rev().find_map(|word| word.strip_prefix("ip="))?;
        let field = |index| told.split(':').nth(index);
        let address = |index| field(index)?.parse().ok();
        Some(Self {
            address: address(0)?,
            gateway: address(2),
            netmask: address(3)?,
            name: field(5).filter(|name| !name.is_empty())?.into(),
            name_server: address(7),
        })
    }

    /// Gives it what it has not got from the kernel.
    fn configure(&self) -> io::Result<()> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        let request = |address| request(&self.name, address);
        // SAFETY: each call takes a whole ifreq or rtentry, of which it reads an address of IPv4's.
        unsafe {
            siocsifaddr(socket.as_raw_fd(), &request(socket_address(self.address)))?;
            siocsifnetmask(socket.as_raw_fd(), &request(socket_address(self.netmask)))?;
            up(&socket, &self.name)?;
            if let Some(gateway) = self.gateway {
                let mut route: libc::rtentry = std::mem::zeroed();
                route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
                route.rt_genmask = route.rt_dst;
                route.rt_gateway = socket_address(gateway);
                route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
                siocaddrt(socket.as_raw_fd(), &route)?;
            }
        }
        Ok(())
    }

    /// It is there, and has no address.
    fn is_bare(&self) -> io::Result<bool> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        let mut request = request(&self.name, socket_address(Ipv4Addr::UNSPECIFIED));
        // SAFETY: it takes a whole ifreq, and leaves an address in the union.
        let result = unsafe { siocgifaddr(socket.as_raw_fd(), &mut request) };
        Ok(result == Err(Errno::EADDRNOTAVAIL))
    }
}

const HOSTS: &str = "/etc/hosts";
const HOSTS_COPY: &str = "/run/lg-hosts";

/// Brings up the loopback interface, and lets programs find the name server. `may_make`: the root
/// takes new files.
pub(crate) fn complete(may_make: bool) -> Result<(), Failure> {
    loopback_up().doing("bring up the loopback interface")?;
    let command_line = fs::read_to_string(COMMAND_LINE).doing("read the kernel's command line")?;
    let mut told = fs::read_to_string(TOLD).unwrap_or_default();
    if let Some(interface) = Interface::of(&command_line) {
        let name = &interface.name;
        if interface.is_bare().doing(format!("look at {name}"))? {
            interface
                .configure()
                .doing(format!("give {name} its address"))?;
            told = interface
                .name_server
                .map_or(told, |it| format!("nameserver {it}\n"));
        }
    }
    match told.contains("nameserver") {
        true => name_server(&told, may_make).doing(format!("mount a {RESOLV_CONF}")),
        false => Ok(()),
    }
}

/// Lets the Guest's own `name` be known, as that of the loopback interface: in a copy of [`HOSTS`]
/// that covers it.
pub(crate) fn know_own_name(name: &str, may_make: bool) -> io::Result<()> {
    let path = Path::new(HOSTS);
    let mut hosts = match fs::read(path) {
        Ok(hosts) => hosts,
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Err(_) if !may_make => return Ok(()),
        Err(_) => {
            fs::create_dir_all("/etc")?;
            File::create_new(path)?;
            b"127.0.0.1\tlocalhost\n::1\tlocalhost\n".to_vec()
        }
    };
    if hosts.last().is_some_and(|&last| last != b'\n') {
        hosts.push(b'\n');
    }
    hosts.extend(format!("127.0.1.1\t{name}\n").into_bytes());
    fs::write(HOSTS_COPY, hosts)?;
    mount(
        Some(HOSTS_COPY),
        path,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )?;
    Ok(())
}

/// Lets [`RESOLV_CONF`] be what the kernel was told. It may be somebody's file, in a shared
/// directory, so it is covered, not written. Where it is a link to what a system of its own would
/// have made, in a file system of this boot's, it is made.
fn name_server(told: &str, may_make: bool) -> io::Result<()> {
    fs::write(COPY, told)?;
    let path = Path::new(RESOLV_CONF);
    if !path.exists() {
        let target = match fs::read_link(path) {
            Ok(target) => Path::new("/etc").join(target),
            Err(_) if may_make => path.into(),
            Err(_) => return Ok(()),
        };
        fs::create_dir_all(target.parent().unwrap_or(&target))?;
        File::create_new(target)?;
    }
    mount(
        Some(COPY),
        path,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )?;
    Ok(())
}

nix::ioctl_read_bad!(siocgifflags, libc::SIOCGIFFLAGS, libc::ifreq);
nix::ioctl_read_bad!(siocgifaddr, libc::SIOCGIFADDR, libc::ifreq);
nix::ioctl_write_ptr_bad!(siocsifaddr, libc::SIOCSIFADDR, libc::ifreq);
nix::ioctl_write_ptr_bad!(siocsifnetmask, libc::SIOCSIFNETMASK, libc::ifreq);
nix::ioctl_write_ptr_bad!(siocaddrt, libc::SIOCADDRT, libc::rtentry);
nix::ioctl_write_ptr_bad!(siocsifflags, libc::SIOCSIFFLAGS, libc::ifreq);

fn loopback_up() -> io::Result<()> {
    // Any socket will do.
    up(&UnixDatagram::unbound()?, "lo")
}

fn up(socket: &impl AsRawFd, name: &str) -> io::Result<()> {
    let mut request = request(name, socket_address(Ipv4Addr::UNSPECIFIED));
    // SAFETY: both calls take a whole ifreq, and the first leaves flags in the union.
    unsafe {
        siocgifflags(socket.as_raw_fd(), &mut request)?;
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        siocsifflags(socket.as_raw_fd(), &request)?;
    }
    Ok(())
}

/// A request for the interface of this name. A longer one than Linux knows finds none.
fn request(name: &str, address: libc::sockaddr) -> libc::ifreq {
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_addr: address },
    };
    let (_, room) = request.ifr_name.split_last_mut().expect("it has some");
    for (to, from) in room.iter_mut().zip(name.as_bytes()) {
        *to = *from as libc::c_char;
    }
    request
}

/// A `struct sockaddr_in`, as the older calls take it: family, port, address.
fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let mut sa_data = [0; 14];
    for (to, from) in sa_data[2..].iter_mut().zip(address.octets()) {
        *to = from as libc::c_char;
    }
    libc::sockaddr {
        sa_family: libc::AF_INET as libc::sa_family_t,
        sa_data,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interface_of_a_command_line() {
        let address = |text: &str| text.parse().unwrap();
        let told =
            "quiet ip=dhcp ip=10.0.2.15::10.0.2.2:255.255.255.0:lguest:eth0:off:10.0.2.3 ro\n";
        let interface = Interface {
            name: "eth0".into(),
            address: address("10.0.2.15"),
            netmask: address("255.255.255.0"),
            gateway: Some(address("10.0.2.2")),
            name_server: Some(address("10.0.2.3")),
        };
        assert_eq!(Interface::of(told), Some(interface));
        for other in [
            "",
            "ip=dhcp",
            "ip=off",
            "ip=::::::",
            "ip=10.0.2.15:::255.0.0.0",
            "xip=1.2.3.4:::1.1.1.1::e:",
        ] {
            assert_eq!(Interface::of(other), None, "{other}");
        }
        let least = Interface::of("ip=10.0.2.15:::255.0.0.0::e0").unwrap();
        assert_eq!((least.gateway, least.name_server), (None, None));
    }

    #[test]
    fn an_interface_that_is_not_there_is_left_alone() {
        let interface = Interface::of("ip=10.0.2.15:::255.0.0.0::lg-no-such-one-at-all:").unwrap();
        assert!(!interface.is_bare().unwrap());
        interface.configure().unwrap_err();
    }
}
