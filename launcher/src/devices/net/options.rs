// SPDX-License-Identifier: GPL-2.0
//! The argument of `--net`, and how to make what it asks for.

use std::fmt;
use std::io;

use super::passt::{self, Forward};
use super::peer::{Error, Mac, Peer};
use super::tap;

/// The argument of `--net`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The other end of the cable.
    pub to: To,
    /// The Guest's address; none: one by chance.
    pub mac: Option<Mac>,
}

/// The other end of the Guest's cable.
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

    /// The words for Linux's command line: its address, where that is ours to give.
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
