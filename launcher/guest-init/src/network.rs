// SPDX-License-Identifier: GPL-2.0
//! What a network is lacking when the kernel has configured the interface that its command line
//! names.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use nix::libc;
use nix::mount::{mount, MsFlags};

use crate::{Doing, Failure};

/// The file in which Linux says what `ip=` has told it of name servers, in the form of
/// [`RESOLV_CONF`].
const TOLD: &str = "/proc/net/pnp";
/// A copy of that: a file there cannot be mounted elsewhere.
const COPY: &str = "/run/lg-resolv.conf";
const RESOLV_CONF: &str = "/etc/resolv.conf";

const HOSTS: &str = "/etc/hosts";
const HOSTS_COPY: &str = "/run/lg-hosts";

/// Brings up the loopback interface, and lets programs find the name server. `may_make`: the root
/// takes new files.
pub(crate) fn complete(may_make: bool) -> Result<(), Failure> {
    loopback_up().doing("bring up the loopback interface")?;
    match fs::read_to_string(TOLD) {
        Ok(told) if told.contains("nameserver") => {
            name_server(&told, may_make).doing(format!("mount a {RESOLV_CONF}"))
        }
        _ => Ok(()),
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
nix::ioctl_write_ptr_bad!(siocsifflags, libc::SIOCSIFFLAGS, libc::ifreq);

fn loopback_up() -> io::Result<()> {
    // Any socket will do.
    let socket = UnixDatagram::unbound()?;
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: 0 },
    };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    // SAFETY: both calls take a whole ifreq, and the first leaves flags in the union.
    unsafe {
        siocgifflags(socket.as_raw_fd(), &mut request)?;
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        siocsifflags(socket.as_raw_fd(), &request)?;
    }
    Ok(())
}
