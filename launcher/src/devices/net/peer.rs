// SPDX-License-Identifier: GPL-2.0
//! Networks: what `--net` asks for, and what is at the other end of the Guest's cable.
//!
//! [`super::passt`] speaks for the Guest with the user's own sockets and needs no rights; [`super::tap`] is an
//! interface of the Host's. The device between them and the Guest is [`crate::devices::net`].

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::RawFd;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{passt, tap};
use crate::report::codes::Code;
use crate::report::Explain;

/// `struct virtio_net_hdr_v1`, the header before each frame (section 5.1.6 of the specification).
pub type Header = [u8; HEADER_SIZE];
/// Size of a [`Header`], in bytes.
pub const HEADER_SIZE: usize = 12;
/// The header of a frame that is nothing but a frame. (`num_buffers` is the device's to fill in.)
pub const PLAIN: Header = [0; HEADER_SIZE];
/// The shortest frame: two addresses and a type. Lengths count no header and no check sequence.
pub const FRAME_MIN: usize = 14;
/// The longest frame: with segmentation left to the receiver, 64 KiB behind [`FRAME_MIN`].
pub const FRAME_MAX: usize = FRAME_MIN + (1 << 16);

/// The other end of the Guest's cable. No function waits.
pub trait Peer: Send {
    /// The largest packet that a frame carries, in bytes.
    fn mtu(&self) -> u16;

    /// Those of the device's features for offloads that the peer takes part in.
    fn offloads(&self) -> u64 {
        0
    }

    /// A driver has agreed on these of [`Peer::offloads`].
    fn agree(&mut self, _offloads: u64) -> io::Result<()> {
        Ok(())
    }

    /// Becomes readable when there may be a frame, or room for one that has waited.
    fn readiness(&self) -> RawFd;

    /// Sends a packet, a header and a frame of [`FRAME_MIN`] to [`FRAME_MAX`] bytes. `Ok(false)`:
    /// there is no room now for all of it, and the same packet must be sent again when there is.
    /// The bytes of the header may be overwritten.
    ///
    /// # Errors
    ///
    /// The cable is cut for good.
    fn send(&mut self, packet: &mut [u8]) -> io::Result<bool>;

    /// The next frame, if there is one; the same until [`Peer::received`] is called.
    ///
    /// # Errors
    ///
    /// The cable is cut for good.
    fn receive(&mut self) -> io::Result<Option<(Header, &[u8])>>;

    /// The frame that [`Peer::receive`] has returned is done with.
    fn received(&mut self);
}

/// What tells a device's thread that a descriptor is readable and, only when asked for, writable.
pub(super) struct Readiness {
    pub(super) epoll: Epoll,
    fd: RawFd,
    output: bool,
}

impl Readiness {
    /// Watches `fd`, which must stay open.
    pub(super) fn new(fd: RawFd) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0))?;
        Ok(Self {
            epoll,
            fd,
            output: false,
        })
    }

    /// Shall it also tell when the descriptor is writable? Returns whether that is a change: what
    /// became writable before the change is not told of.
    pub(super) fn watch_output(&mut self, output: bool) -> io::Result<bool> {
        if self.output == output {
            return Ok(false);
        }
        let events = match output {
            true => EventSet::IN | EventSet::OUT,
            false => EventSet::IN,
        };
        let event = EpollEvent::new(events, 0);
        self.epoll.ctl(ControlOperation::Modify, self.fd, event)?;
        self.output = output;
        Ok(true)
    }

    /// Calls `write` until it is through (true) or there is no room (false), and then tells when
    /// there is. `write` returns whether it is through.
    pub(super) fn write(
        &mut self,
        mut write: impl FnMut() -> io::Result<bool>,
    ) -> io::Result<bool> {
        loop {
            match write() {
                Ok(true) => {
                    self.watch_output(false)?;
                    return Ok(true);
                }
                Ok(false) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // There may be room again since.
                    if !self.watch_output(true)? {
                        return Ok(false);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// What `--net` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The other end of the cable.
    pub to: To,
    /// The Guest's address; none: one by chance.
    pub mac: Option<Mac>,
}

/// Where the Guest's cable ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    /// At passt, with these ports of ours forwarded to the Guest.
    User(Vec<Forward>),
    /// At the interface of this name.
    Tap(String),
}

impl fmt::Display for To {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tap(name) => write!(f, "tap {name}"),
            Self::User(forwards) => {
                write!(f, "user")?;
                forwards.iter().try_for_each(|forward| {
                    let Forward { udp, host, guest } = forward;
                    let protocol = if *udp { "udp" } else { "tcp" };
                    write!(f, ", {protocol} port {host} here is {guest} there")
                })
            }
        }
    }
}

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

impl Options {
    /// Reads the argument of `--net`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut words = text.split(',');
        let first = words.next().unwrap_or_default();
        let mut to = match first.split_once('=') {
            None if first == "user" => To::User(Vec::new()),
            Some(("tap", name)) => To::Tap(interface(name)?),
            _ => return Err("it begins with user or tap=INTERFACE".into()),
        };
        let mut mac = None;
        for word in words {
            match (word.split_once('='), &mut to) {
                (Some(("mac", _)), _) if mac.is_some() => {
                    return Err("there is one mac= too many".into());
                }
                (Some(("mac", value)), _) => mac = Some(Mac::parse(value)?),
                (Some(("forward", value)), To::User(forwards)) => {
                    forwards.push(Forward::parse(value)?);
                }
                (Some(("forward", _)), To::Tap(_)) => {
                    return Err("forward= goes with user; a tap has addresses of its own".into());
                }
                _ => return Err(format!("{word:?} is neither mac=... nor forward=...")),
            }
        }
        Ok(Self { to, mac })
    }

    /// Looks whether there is what [`open`](Self::open) needs first, and touches nothing.
    ///
    /// # Errors
    ///
    /// There is no such program, or no such interface.
    pub fn check(&self) -> Result<(), Error> {
        match &self.to {
            To::User(_) => passt::find().map(drop).ok_or(Error::NoPasst),
            To::Tap(name) => tap::mtu(name).map(drop),
        }
    }

    /// Opens the other end of the cable.
    pub fn open(&self) -> Result<Box<dyn Peer>, Error> {
        Ok(match &self.to {
            To::User(forwards) => Box::new(passt::start(forwards)?),
            To::Tap(name) => Box::new(tap::Tap::open(name)?),
        })
    }

    /// The Guest's address: the one that was asked for, or one by chance.
    pub fn mac(&self) -> io::Result<Mac> {
        match self.mac {
            Some(mac) => Ok(mac),
            None => Mac::by_chance(),
        }
    }

    /// What Linux is to be told on its command line: its address, where that is ours to give.
    pub fn argument(&self) -> Option<String> {
        matches!(self.to, To::User(_)).then(passt::argument)
    }
}

/// A name that an interface can have (`linux:net/core/dev.c`, `dev_valid_name`).
fn interface(name: &str) -> Result<String, String> {
    let bad = |c: char| !c.is_ascii_graphic() || c == '/' || c == ':';
    if name.is_empty() || name.len() > 15 || name.contains(bad) || name == "." || name == ".." {
        return Err(format!("no interface is called {name:?}"));
    }
    Ok(name.into())
}

impl Forward {
    fn parse(text: &str) -> Result<Self, String> {
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

/// An Ethernet address of one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Reads six bytes in hexadecimal, with colons between.
    pub fn parse(text: &str) -> Result<Self, String> {
        let byte = |text: &str| {
            let digits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            digits.then(|| u8::from_str_radix(text, 16).ok()).flatten()
        };
        let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
        let bytes = bytes
            .and_then(|bytes| <[u8; 6]>::try_from(bytes).ok())
            .ok_or_else(|| {
                format!("{text:?} is no Ethernet address; an example is 02:00:00:12:34:56")
            })?;
        if bytes[0] & 1 != 0 || bytes == [0; 6] {
            return Err(format!("{text} is no address of a single interface"));
        }
        Ok(Self(bytes))
    }

    /// An address that nobody else has, most likely: from the range for who has no range.
    fn by_chance() -> io::Result<Self> {
        let mut bytes = [2; 6];
        File::open("/dev/urandom")?.read_exact(&mut bytes[1..])?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Why there is no network. `Display` is the what.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum Error {
    #[error("{}", Code::NoPasst.title())]
    NoPasst,
    #[error("{}", Code::Passt.title())]
    Passt(String),
    #[error("there is no network interface {0}")]
    NoInterface(String),
    #[error("cannot open /dev/net/tun")]
    OpenTun(#[source] io::Error),
    #[error("cannot use the network interface {name}")]
    Tap { name: String, source: io::Error },
}

impl Explain for Error {
    fn code(&self) -> Code {
        match self {
            Self::NoPasst => Code::NoPasst,
            Self::Passt(_) => Code::Passt,
            Self::NoInterface(_) => Code::NoInterface,
            Self::OpenTun(_) => Code::OpenTun,
            Self::Tap { .. } => Code::Tap,
        }
    }

    fn why(&self) -> String {
        match self {
            Self::NoPasst => "--net user needs it, and no directory in PATH has it".into(),
            Self::Passt(said) => said.clone(),
            Self::NoInterface(_) => "--net tap=... uses one that exists, and makes none".into(),
            Self::OpenTun(source) if source.kind() == io::ErrorKind::NotFound => {
                "the module tun is not loaded".into()
            }
            Self::Tap { source, .. } => match source.raw_os_error() {
                Some(nix::libc::EBUSY) => "another program is using it".into(),
                Some(nix::libc::EPERM) => "it belongs to another user".into(),
                Some(nix::libc::EINVAL) => "it is no tap interface".into(),
                _ => source.to_string(),
            },
            Self::OpenTun(source) => source.to_string(),
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::NoPasst | Self::OpenTun(_) => self.code().fix().to_string(),
            Self::Passt(_) => "forward other ports, if it is about one; passt(1) knows more".into(),
            Self::NoInterface(name) | Self::Tap { name, .. } => format!(
                "make one of your own: sudo ip tuntap add {name} mode tap user $USER && \
                 sudo ip link set {name} up"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mac(last: u8) -> Option<Mac> {
        Some(Mac([2, 0, 0, 0, 0xab, last]))
    }

    #[test]
    fn users() {
        let user = |forwards, mac| {
            Ok(Options {
                to: To::User(forwards),
                mac,
            })
        };
        let forward = |host, guest, udp| Forward { udp, host, guest };
        assert_eq!(Options::parse("user"), user(vec![], None));
        assert_eq!(
            Options::parse("user,mac=02:00:00:00:Ab:01"),
            user(vec![], mac(1))
        );
        assert_eq!(
            Options::parse("user,forward=8080:80,mac=02:00:00:00:ab:02,forward=1:65535/udp"),
            user(
                vec![forward(8080, 80, false), forward(1, 65535, true)],
                mac(2)
            )
        );
        assert_eq!(
            Options::parse("user,forward=22:22/tcp"),
            user(vec![forward(22, 22, false)], None)
        );
    }

    #[test]
    fn taps() {
        let tap = |name: &str, mac| {
            Ok(Options {
                to: To::Tap(name.into()),
                mac,
            })
        };
        assert_eq!(Options::parse("tap=tap0"), tap("tap0", None));
        assert_eq!(
            Options::parse("tap=lg-tap.7,mac=02:00:00:00:ab:03"),
            tap("lg-tap.7", mac(3))
        );
    }

    #[test]
    fn nonsense() {
        for text in [
            "",
            "User",
            "user=",
            "user,",
            "user,user",
            "user,mac",
            "user,mac=",
            "user,mac=02:00:00:00:00",
            "user,mac=02:00:00:00:00:1",
            "user,mac=02:00:00:00:00:+1",
            "user,mac=02:00:00:00:00:01:02",
            "user,mac=01:00:00:00:00:01",
            "user,mac=00:00:00:00:00:00",
            "user,mac=02:00:00:00:00:01,mac=02:00:00:00:00:01",
            "user,forward=80",
            "user,forward=0:80",
            "user,forward=80:0",
            "user,forward=80:65536",
            "user,forward=80:80/sctp",
            "user,forward=80:80/udp/tcp",
            "tap",
            "tap=",
            "tap=..",
            "tap=a/b",
            "tap=an-interface-too-long",
            "tap=tap0,forward=80:80",
            "passt",
        ] {
            assert!(Options::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn macs_by_chance_are_of_one_interface() {
        let mac = Mac::by_chance().unwrap();
        assert_eq!(Mac::parse(&mac.to_string()), Ok(mac));
        assert_ne!(mac, Mac::by_chance().unwrap());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(user|tap=t)?[,=:/a-f0-9]{0,20}.*") {
            let _ = Options::parse(&text);
        }
    }
}
