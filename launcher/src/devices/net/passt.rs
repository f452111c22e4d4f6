// SPDX-License-Identifier: GPL-2.0
//! `--net user`: passt, a program which speaks TCP and UDP for the Guest over sockets of the user's.
//!
//! The Guest is 10.0.2.15, as with QEMU's user network, and 10.0.2.2 is the Host with what listens
//! at its loopback interface. Both are given, to passt and to Linux, so nothing has to be asked for
//! while the Guest boots. passt answers DHCP as well, for a system that configures itself.

#![forbid(unsafe_code)]

use std::env;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::fcntl::{fcntl, FcntlArg, FdFlag};

use super::peer::Error;
use super::stream::Stream;

/// A port of our loopback interface which is the Guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// UDP, not TCP.
    pub udp: bool,
    /// Our port.
    pub host: u16,
    /// The Guest's port.
    pub guest: u16,
}

impl Forward {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (ports, udp) = match text.split_once('/') {
            None | Some((_, "tcp")) => (text.trim_end_matches("/tcp"), false),
            Some((ports, "udp")) => (ports, true),
            Some(_) => ("", false),
        };
        let port = |text: &str| text.parse().ok().filter(|&port| port != 0);
        ports
            .split_once(':')
            .and_then(|(host, guest)| {
                Some(Self {
                    udp,
                    host: port(host)?,
                    guest: port(guest)?,
                })
            })
            .ok_or_else(|| {
                format!("{text:?} is no pair of ports; examples are 8080:80 and 5353:53/udp")
            })
    }
}

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const NETMASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);
/// The gateway, which is also the Host.
const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// A question that comes here is put to the Host's own name server.
const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);

/// The path of passt.
pub fn find() -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|directory| directory.join("passt"))
        .find(|program| {
            fs::metadata(program).is_ok_and(|file| file.is_file() && file.mode() & 0o111 != 0)
        })
}

/// Starts passt, and returns when it is ready.
///
/// It goes into the background, so no key of the terminal reaches it, and ends when its socket is
/// closed: with us, however we end.
///
/// # Errors
///
/// There is no passt, or it says why it does not start.
pub(super) fn start(forwards: &[Forward]) -> Result<Stream, Error> {
    let failed = |error: io::Error| Error::Passt(error.to_string());
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    let theirs = OwnedFd::from(theirs);
    // It must survive the exec. No other program is started as long as it is open.
    fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty()))
        .map_err(|error| Error::Passt(error.to_string()))?;

    let output = Command::new("passt")
        .args(["--fd", &theirs.as_raw_fd().to_string(), "--quiet"])
        // The Host's interfaces and routes do not matter: no address is taken from there.
        .args(["--ipv4-only", "--interface", "lo"])
        .args(["--address", &GUEST.to_string()])
        .args(["--netmask", &NETMASK.to_string()])
        .args(["--gateway", &HOST.to_string()])
        .args(["--dns-forward", &NAME_SERVER.to_string()])
        .args(ports("--tcp-ports", forwards, false))
        .args(ports("--udp-ports", forwards, true))
        .stdin(Stdio::null())
        .output()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::NoPasst,
            _ => failed(error),
        })?;
    drop(theirs);
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().last().map(str::to_owned);
        return Err(Error::Passt(last.unwrap_or(output.status.to_string())));
    }
    Stream::new(ours).map_err(failed)
}

/// The options for these forwards of one protocol. passt would forward a UDP port with each TCP
/// port, if not told otherwise.
fn ports(option: &str, forwards: &[Forward], udp: bool) -> Vec<String> {
    let spec = |forward: &Forward| {
        let loopback = Ipv4Addr::LOCALHOST;
        format!("{loopback}/{}:{}", forward.host, forward.guest)
    };
    let mut specs: Vec<_> = forwards
        .iter()
        .filter(|forward| forward.udp == udp)
        .map(spec)
        .collect();
    if specs.is_empty() {
        specs.push("none".into());
    }
    specs
        .into_iter()
        .flat_map(|spec| [option.to_owned(), spec])
        .collect()
}

/// Linux's `ip=` (`linux:Documentation/admin-guide/nfs/nfsroot.rst`): addresses of the Guest, of no
/// server, of the gateway, and the netmask; the host name, which would become the address; the
/// interface, which is the only one; no protocol to ask; and the name server, which Linux tells of
/// in /proc/net/pnp.
pub(super) fn argument() -> String {
    format!("ip={GUEST}::{HOST}:{NETMASK}:lguest:eth0:off:{NAME_SERVER}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_asked_for_is_forwarded() {
        let forward = |udp, host, guest| Forward { udp, host, guest };
        let some = [
            forward(false, 8080, 80),
            forward(true, 53, 5353),
            forward(false, 2222, 22),
        ];
        assert_eq!(
            ports("-t", &some, false),
            ["-t", "127.0.0.1/8080:80", "-t", "127.0.0.1/2222:22"]
        );
        assert_eq!(ports("-u", &some, true), ["-u", "127.0.0.1/53:5353"]);
        assert_eq!(ports("-u", &some[..1], true), ["-u", "none"]);
    }

    #[test]
    fn what_linux_is_told() {
        assert_eq!(
            argument(),
            "ip=10.0.2.15::10.0.2.2:255.255.255.0:lguest:eth0:off:10.0.2.3"
        );
    }
}
