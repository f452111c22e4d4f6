// SPDX-License-Identifier: GPL-2.0
//! The state of a Guest's private root.

mod beside;
mod client;

use std::fs;
use std::path::Path;

use fuse_backend_rs::abi::fuse_abi::{stat64, CreateIn, ROOT_ID};
use fuse_backend_rs::api::filesystem::{
    DirEntry, Entry, FileSystem, GetxattrReply, ListxattrReply, SetattrValid, ZeroCopyReader,
    ZeroCopyWriter,
};
use rustix::fs::{OFlags, RenameFlags};
use rustix::io::Errno;

use self::beside::fill;
use self::client::Client;
use super::*;
use crate::devices::fs::server::VALID;

const LIMITS: Limits = Limits {
    inodes: 64,
    handles: 64,
};
const BUDGET: u64 = 64 << 20;

fn a_root() -> (tempfile::TempDir, Client) {
    let directory = tempfile::tempdir().unwrap();
    fill(directory.path());
    let client = Client::new(directory.path());
    (directory, client)
}

/// Who lists a directory and changes what he finds finds each name once, as in a real one.
#[test]
fn what_changes_while_it_is_listed_is_listed_once() {
    let (directory, client) = a_root();
    for number in 0..50 {
        fs::write(directory.path().join(format!("file{number}")), "").unwrap();
    }
    let (handle, _) = client.server.opendir(&nobody(), ROOT_ID, 0).unwrap();
    let handle = handle.unwrap();
    let (mut listed, mut offset) = (Vec::new(), 0);
    loop {
        let mut found = None;
        let mut add = |entry: DirEntry<'_>| {
            if found.is_some() {
                return Ok(0);
            }
            found = Some((
                entry.offset,
                String::from_utf8(entry.name.to_vec()).unwrap(),
            ));
            Ok(1)
        };
        let server = &client.server;
        server
            .readdir(&nobody(), ROOT_ID, handle, 4096, offset, &mut add)
            .unwrap();
        let Some((next, name)) = found else { break };
        offset = next;
        if name.starts_with("file") {
            let open = client.open(Path::new(&name)).unwrap();
            client.write(open, 0, 1).unwrap();
            client.close(open);
            listed.push(name);
        }
    }
    listed.sort();
    let before = listed.len();
    listed.dedup();
    assert_eq!((before, listed.len()), (50, 50));
}

/// Entries of a list: what it is, what it may, whom it names.
fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let bytes = |&(tag, may, id): &(u16, u16, u32)| {
        [
            &tag.to_le_bytes()[..],
            &may.to_le_bytes(),
            &id.to_le_bytes(),
        ]
        .concat()
    };
    let entries: Vec<_> = entries.iter().map(bytes).collect();
    [&2u32.to_le_bytes()[..], &entries.concat()].concat()
}

#[test]
fn a_default_list_is_inherited_and_replaces_the_umask() {
    const ANYBODY: u32 = u32::MAX;
    let (_directory, client) = a_root();
    let server = &client.server;
    let default = list(&[
        (1, 7, ANYBODY),
        (2, 7, 1000),
        (4, 5, ANYBODY),
        (16, 7, ANYBODY),
        (32, 0, ANYBODY),
    ]);
    let of_file = list(&[
        (1, 6, ANYBODY),
        (2, 7, 1000),
        (4, 5, ANYBODY),
        (16, 6, ANYBODY),
        (32, 0, ANYBODY),
    ]);
    let get = |inode, name| match server.getxattr(&nobody(), inode, name, 999) {
        Ok(GetxattrReply::Value(list)) => Some(list),
        _ => None,
    };
    let umask = 0o077;
    let arguments = CreateIn {
        mode: 0o666,
        umask,
        ..CreateIn::default()
    };
    let plain = server
        .create(&nobody(), ROOT_ID, c"plain", arguments)
        .unwrap();
    assert_eq!(plain.0.attr.st_mode, 0o100_600);
    server
        .setxattr(&nobody(), ROOT_ID, acl::DEFAULT, &default, 0)
        .unwrap();

    let (file, ..) = server
        .create(&nobody(), ROOT_ID, c"new", arguments)
        .unwrap();
    assert_eq!(file.attr.st_mode, 0o100_660);
    assert_eq!(get(file.inode, acl::ACCESS), Some(of_file.clone()));
    assert_eq!(get(file.inode, acl::DEFAULT), None);
    let (unnamed, _) = server
        .create_unnamed(&nobody(), ROOT_ID, arguments)
        .unwrap();
    assert_eq!(get(unnamed.inode, acl::ACCESS), Some(of_file));
    let made = server
        .mkdir(&nobody(), ROOT_ID, c"made", 0o777, umask)
        .unwrap();
    assert_eq!(made.attr.st_mode, 0o40_770);
    assert_eq!(get(made.inode, acl::ACCESS), Some(default.clone()));
    assert_eq!(get(made.inode, acl::DEFAULT), Some(default));
    let link = server.symlink(&nobody(), c"x", ROOT_ID, c"link").unwrap();
    assert_eq!(get(link.inode, acl::ACCESS), None);

    // A list that the mode says all of is the mode.
    let plain = list(&[(1, 7, ANYBODY), (4, 5, ANYBODY), (32, 1, ANYBODY)]);
    server
        .setxattr(&nobody(), file.inode, acl::ACCESS, &plain, 0)
        .unwrap();
    assert_eq!(get(file.inode, acl::ACCESS), None);
    let (attributes, _) = server.attributes(file.inode, None).unwrap();
    assert_eq!(attributes.mode, 0o100_751);
}

#[test]
fn only_root_is_told_of_trusted_attributes() {
    let (_directory, client) = a_root();
    let names = |uid| {
        let caller = Context { uid, ..nobody() };
        match client.server.listxattr(&caller, ROOT_ID, 999).unwrap() {
            ListxattrReply::Names(names) => names,
            ListxattrReply::Count(_) => panic!("there was room"),
        }
    };
    for name in [c"trusted.one", c"user.two"] {
        client
            .server
            .setxattr(&nobody(), ROOT_ID, name, b"", 0)
            .unwrap();
    }
    assert_eq!(names(0), b"trusted.one\0user.two\0");
    assert_eq!(names(1000), b"user.two\0");
}

#[test]
fn what_only_the_guest_can_change_is_not_asked_again() {
    let (_directory, client) = a_root();
    let server = &client.server;
    let absent = |parent, name| {
        let entry = server.lookup(&nobody(), parent, name).unwrap();
        assert_eq!(entry.inode, 0);
        entry.entry_timeout
    };
    let made = server.mkdir(&nobody(), ROOT_ID, c"made", 0o755, 0).unwrap();
    assert_eq!(absent(made.inode, c"none"), FOREVER);
    assert_eq!(absent(ROOT_ID, c"none"), VALID);
    client
        .at(Path::new("a"), |_| {
            server.unlink(&nobody(), ROOT_ID, c"a").unwrap();
            Ok(())
        })
        .unwrap();
    assert_eq!(absent(ROOT_ID, c"a"), FOREVER);
}

#[test]
fn attributes_have_the_names_that_they_have_elsewhere() {
    let (_directory, client) = a_root();
    let set = |name| {
        client
            .server
            .setxattr(&nobody(), ROOT_ID, name, b"", 0)
            .map_err(client::number)
    };
    assert_eq!(set(c"user.name"), Ok(()));
    assert_eq!(set(c"user."), Err(Errno::INVAL.raw_os_error()));
    assert_eq!(set(c"other.name"), Err(Errno::OPNOTSUPP.raw_os_error()));
}
