// SPDX-License-Identifier: GPL-2.0
//! Access control lists of files that were changed here: what they and the mode say of one another.
//!
//! The Guest's kernel checks the list, and leaves it to us that it agrees with the mode. The layout is
//! that of `linux:include/uapi/linux/posix_acl_xattr.h`: a version, and entries of a tag, permissions
//! and an id.

use std::ffi::CStr;
use std::io;

use rustix::io::Errno;

/// The extended attribute that such a list is.
pub(super) const ACCESS: &CStr = c"system.posix_acl_access";
/// The one of a directory, for what is made in it.
pub(super) const DEFAULT: &CStr = c"system.posix_acl_default";

const VERSION: [u8; 4] = 2u32.to_le_bytes();
const ENTRY: usize = 8;
// Tags, of `linux:include/uapi/linux/posix_acl.h`.
const OWNER: u16 = 0x01;
const GROUP: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

fn tag(entry: &[u8]) -> u16 {
    u16::from_le_bytes([entry[0], entry[1]])
}

fn entries(list: &[u8]) -> io::Result<std::slice::ChunksExact<'_, u8>> {
    let entries = list
        .strip_prefix(&VERSION)
        .ok_or(Errno::OPNOTSUPP)?
        .chunks_exact(ENTRY);
    match entries.remainder() {
        [] => Ok(entries),
        _ => Err(Errno::INVAL.into()),
    }
}

/// Where the bits of the mode for a class come from: what a group may do at most, if the list names
/// anybody, is its mask.
fn shift(tag: u16, has_mask: bool) -> Option<u32> {
    match tag {
        OWNER => Some(6),
        MASK => Some(3),
        GROUP if !has_mask => Some(3),
        OTHER => Some(0),
        _ => None,
    }
}

/// The nine bits of the mode that `list` stands for.
///
/// # Errors
///
/// It is no such list.
pub(super) fn mode(list: &[u8]) -> io::Result<u32> {
    let has_mask = entries(list)?.any(|entry| tag(entry) == MASK);
    let mut mode = 0;
    for entry in entries(list)? {
        if let Some(shift) = shift(tag(entry), has_mask) {
            mode |= u32::from(entry[2] & 7) << shift;
        }
    }
    Ok(mode)
}

/// Does `list` say nothing that its mode does not?
pub(super) fn is_plain(list: &[u8]) -> bool {
    let plain = [OWNER, GROUP, OTHER];
    entries(list).is_ok_and(|mut all| all.all(|entry| plain.contains(&tag(entry))))
}

/// The list and the mode of what is made with `mode` in a directory whose default list is `default`:
/// each grants what both do. As posix_acl_create_masq() of `linux:fs/posix_acl.c`.
pub(super) fn inherit(default: &[u8], mode: u32) -> io::Result<(Vec<u8>, u32)> {
    let both = mode & (self::mode(default)? | !0o777);
    let mut list = default.to_vec();
    set_mode(&mut list, both);
    Ok((list, both))
}

/// Has `list` say what the mode says now.
pub(super) fn set_mode(list: &mut [u8], mode: u32) {
    let has_mask = entries(list).is_ok_and(|mut all| all.any(|entry| tag(entry) == MASK));
    let Some(all) = list.get_mut(VERSION.len()..) else {
        return;
    };
    for entry in all.chunks_exact_mut(ENTRY) {
        if let Some(shift) = shift(tag(entry), has_mask) {
            entry[2..4].copy_from_slice(&(((mode >> shift) & 7) as u16).to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMED_USER: u16 = 0x02;

    fn list(entries: &[(u16, u16)]) -> Vec<u8> {
        let bytes = |&(tag, may): &(u16, u16)| {
            [&tag.to_le_bytes()[..], &may.to_le_bytes(), &[0xff; 4]].concat()
        };
        let entries: Vec<_> = entries.iter().map(bytes).collect();
        [&VERSION[..], &entries.concat()].concat()
    }

    #[test]
    fn a_mask_is_the_group_of_the_mode() {
        let plain = [(OWNER, 6), (GROUP, 4), (OTHER, 1)];
        assert_eq!(mode(&list(&plain)).unwrap(), 0o641);
        let named = [
            (OWNER, 7),
            (NAMED_USER, 6),
            (GROUP, 0),
            (MASK, 4),
            (OTHER, 0),
        ];
        assert_eq!(mode(&list(&named)).unwrap(), 0o740);
    }

    #[test]
    fn a_list_follows_the_mode() {
        let mut named = list(&[
            (OWNER, 7),
            (NAMED_USER, 6),
            (GROUP, 5),
            (MASK, 7),
            (OTHER, 7),
        ]);
        set_mode(&mut named, 0o100_640);
        let expected = [
            (OWNER, 6),
            (NAMED_USER, 6),
            (GROUP, 5),
            (MASK, 4),
            (OTHER, 0),
        ];
        assert_eq!(named, list(&expected));
        let mut plain = list(&[(OWNER, 7), (GROUP, 7), (OTHER, 7)]);
        set_mode(&mut plain, 0o641);
        assert_eq!(plain, list(&[(OWNER, 6), (GROUP, 4), (OTHER, 1)]));
    }

    #[test]
    fn what_is_made_may_what_both_grant() {
        let default = [
            (OWNER, 7),
            (NAMED_USER, 7),
            (GROUP, 5),
            (MASK, 6),
            (OTHER, 1),
        ];
        let expected = [
            (OWNER, 6),
            (NAMED_USER, 7),
            (GROUP, 5),
            (MASK, 4),
            (OTHER, 0),
        ];
        let inherited = inherit(&list(&default), 0o100_644).unwrap();
        assert_eq!(inherited, (list(&expected), 0o100_640));
        assert!(!is_plain(&inherited.0));
        assert!(is_plain(&list(&[(OWNER, 7), (GROUP, 5), (OTHER, 1)])));
        assert!(!is_plain(b"nonsense") && inherit(b"nonsense", 0).is_err());
    }

    #[test]
    fn nonsense_is_no_list() {
        for nonsense in [&b""[..], b"\x02\0\0", b"\x01\0\0\0", b"\x02\0\0\0entry"] {
            assert!(mode(nonsense).is_err());
            set_mode(&mut nonsense.to_vec(), 0o777);
        }
    }
}
