// SPDX-License-Identifier: GPL-2.0
//! Questions to a running `lg run`, of the same user's: a line goes in, a line of JSON comes out.
//!
//! The place is an abstract UNIX socket, `@lg/UID/PID`. It has no file, which the sandbox could not remove and which
//! a killed lg would leave behind; the kernel's list of sockets (/proc/net/unix) is that of the Guests. Anybody can
//! take such a name and connect to it, so each side asks the kernel who the other one is, and speaks with its own
//! user only. Nothing that can be asked changes anything.

#![forbid(unsafe_code)]

pub mod client;
pub mod server;

use std::fmt;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The longest question, with its newline.
const QUESTION_MAX: usize = 256;

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// `stats`: the counters of `--stats`, by their names.
    Stats,
    /// `guest`: its kernel, command and memory, its age, and the time that it has had of the CPUs.
    Guest,
    /// `walk GVA [VCPU]`: an address in the Guest's page tables and in the shadow.
    Walk {
        /// The address, which is written in hexadecimal.
        gva: u64,
        /// The number of the vCPU; 0 unless it is said.
        vcpu: u32,
    },
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stats => write!(f, "stats"),
            Self::Guest => write!(f, "guest"),
            Self::Walk { gva, vcpu } => write!(f, "walk {gva:#x} {vcpu}"),
        }
    }
}

impl FromStr for Query {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        let known = match words[..] {
            ["stats"] => Some(Self::Stats),
            ["guest"] => Some(Self::Guest),
            ["walk", gva] => address(gva).map(|gva| Self::Walk { gva, vcpu: 0 }),
            ["walk", gva, vcpu] => address(gva)
                .zip(vcpu.parse().ok())
                .map(|(gva, vcpu)| Self::Walk { gva, vcpu }),
            _ => None,
        };
        known.ok_or_else(|| "the questions are: stats; guest; walk GVA [VCPU]".into())
    }
}

/// An address as people write and copy it: in hexadecimal, with or without 0x.
pub fn address(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let all = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    u64::from_str_radix(digits, 16).ok().filter(|_| all)
}

/// The line that comes out.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Reply {
    Answer(Value),
    Error(String),
}

/// What all names of a user's sockets begin with.
fn names_of(uid: u32) -> String {
    format!("lg/{uid}/")
}

fn place(uid: u32, pid: u32) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("{}{pid}", names_of(uid)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn questions_are_lines() {
        let walk = |gva, vcpu| Ok(Query::Walk { gva, vcpu });
        assert_eq!("stats\n".parse(), Ok(Query::Stats));
        assert_eq!("walk 0x1000".parse(), walk(0x1000, 0));
        assert_eq!(
            "walk ffffffff81000000 1".parse(),
            walk(0xffff_ffff_8100_0000, 1)
        );
        for query in [Query::Stats, Query::Guest, Query::Walk { gva: 7, vcpu: 3 }] {
            assert_eq!(query.to_string().parse(), Ok(query));
        }
        for bad in [
            "",
            "stat",
            "stats 1",
            "walk",
            "walk x",
            "walk +1",
            "walk 1 -1",
            "walk 1 2 3",
        ] {
            bad.parse::<Query>().unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn any_line_is_a_question_or_not(line in ".*") {
            if let Ok(query) = line.parse::<Query>() {
                prop_assert_eq!(query.to_string().parse(), Ok(query));
            }
        }
    }
}
