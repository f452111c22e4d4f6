// SPDX-License-Identifier: GPL-2.0
//! The store, as a kernel sees it: by its page.

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::xen::testing::kernel::{Kernel, Reply};

const EVENT: u32 = 15;

fn kernel() -> (Kernel, Store) {
    let memory = crate::memory::create(1 << 20).unwrap();
    (
        Kernel::new(memory.clone(), 0x4000),
        Store::new(memory, 0x4000),
    )
}

fn reply(kind: u32, payload: &[u8]) -> Reply {
    Reply {
        kind,
        payload: payload.into(),
    }
}

fn error(name: &str) -> Reply {
    reply(ERROR, format!("{name}\0").as_bytes())
}

fn done(kind: u32) -> Reply {
    reply(kind, DONE)
}

#[test]
fn nodes() {
    let (mut kernel, mut store) = kernel();
    let mut ask = |kind, payload: &str| kernel.ask(&mut store, kind, 0, payload.as_bytes());
    assert_eq!(ask(READ, "device/pci/0/state\0"), error("ENOENT"));
    assert_eq!(ask(WRITE, "device/pci/0/state\x001"), done(WRITE));
    assert_eq!(
        ask(READ, "/local/domain/1/device/pci/0/state\0"),
        reply(READ, b"1")
    );
    assert_eq!(ask(MKDIR, "device/pci/0\0"), done(MKDIR));
    assert_eq!(ask(READ, "device/pci/0/state\0"), reply(READ, b"1"));
    assert_eq!(ask(MKDIR, "device/pci/1\0"), done(MKDIR));
    assert_eq!(
        ask(DIRECTORY, "device/pci\0"),
        reply(DIRECTORY, b"0\x001\0")
    );
    assert_eq!(ask(DIRECTORY, "device/pci/1\0"), reply(DIRECTORY, b""));
    assert_eq!(ask(RM, "device/pci\0"), done(RM));
    assert_eq!(ask(RM, "device/pci\0"), done(RM));
    assert_eq!(ask(RM, "device/pci/0\0"), error("ENOENT"));
    assert_eq!(ask(DIRECTORY, "device\0"), reply(DIRECTORY, b""));
    assert_eq!(
        ask(GET_DOMAIN_PATH, "1\0"),
        reply(GET_DOMAIN_PATH, b"/local/domain/1\0")
    );
}

#[test]
fn refusals() {
    let (mut kernel, mut store) = kernel();
    let mut ask = |kind, payload: &[u8]| kernel.ask(&mut store, kind, 0, payload);
    for path in [
        &b"/local/domain/0/a\0"[..],
        b"/local/domain/1\0",
        b"/\0",
        b"/vm\0",
    ] {
        assert_eq!(ask(MKDIR, path), error("EACCES"));
        assert_eq!(ask(RM, path), error("EACCES"));
        assert_eq!(ask(WRITE, path), error("EACCES"));
    }
    for payload in [&b""[..], b"a", b"\0", b"a\0b\0", b"a b\0", b"a//b\0"] {
        assert_eq!(ask(READ, payload), error("EINVAL"), "{payload:?}");
        assert_eq!(ask(DIRECTORY, payload), error("EINVAL"));
        assert_eq!(ask(RM, payload), error("EINVAL"));
    }
    assert_eq!(ask(WRITE, b"a"), error("EINVAL"));
    assert_eq!(ask(WATCH, b"a\0"), error("EINVAL"));
    assert_eq!(ask(UNWATCH, b"a\0t\0"), error("ENOENT"));
    assert_eq!(ask(TRANSACTION_END, b"T\0"), error("ENOENT"));
    assert_eq!(ask(TRANSACTION_END, b"X\0"), error("EINVAL"));
    for kind in [0, 3, 14, 21, 22, 0xffff, u32::MAX] {
        assert_eq!(ask(kind, b"a\0"), error("ENOSYS"), "{kind}");
    }
    assert_eq!(
        ask(WRITE, &[b"a\0".to_vec(), vec![0; 2049]].concat()),
        error("ENOSPC")
    );
    for number in 0..64 {
        ask(
            WRITE,
            format!("long/{number}{}\0", "x".repeat(100)).as_bytes(),
        );
    }
    assert_eq!(ask(DIRECTORY, b"long\0"), error("E2BIG"));
}

#[test]
fn watches() {
    let (mut kernel, mut store) = kernel();
    let mut ask = |kind, payload: &str| kernel.ask_all(&mut store, kind, 0, payload.as_bytes());
    let event = |payload: &[u8]| reply(EVENT, payload);
    assert_eq!(
        ask(WATCH, "device\0t1\0"),
        [done(WATCH), event(b"device\0t1\0")]
    );
    assert_eq!(ask(WATCH, "device\0t1\0"), [error("EEXIST")]);
    let absolute = "/local/domain/1/device/vbd";
    assert_eq!(ask(WATCH, &format!("{absolute}\0t2\0")).len(), 2);
    assert_eq!(
        ask(WRITE, "device/pci\0x"),
        [done(WRITE), event(b"device/pci\0t1\0")]
    );
    assert_eq!(
        ask(WRITE, "device/vbd/0\0x"),
        [
            done(WRITE),
            event(b"device/vbd/0\0t1\0"),
            event(format!("{absolute}/0\0t2\0").as_bytes())
        ]
    );
    assert_eq!(
        ask(MKDIR, "device/pci\0"),
        [done(MKDIR)],
        "nothing has changed"
    );
    assert_eq!(
        ask(RM, "device\0"),
        [
            done(RM),
            event(b"device\0t1\0"),
            event(format!("{absolute}\0t2\0").as_bytes())
        ]
    );
    assert_eq!(ask(UNWATCH, "device\0t1\0"), [done(UNWATCH)]);
    assert_eq!(ask(WRITE, "device/pci\0x"), [done(WRITE)]);
}

#[test]
fn our_side_is_heard() {
    let (mut kernel, mut store) = kernel();
    kernel.ask_all(
        &mut store,
        WATCH,
        0,
        b"/local/domain/0/backend/pci/1/0/state\0t\0",
    );
    store.set("/local/domain/0/backend/pci/1/0/state", "4");
    assert!(store.serve().unwrap().busy);
    assert_eq!(
        kernel.replies(),
        [reply(EVENT, b"/local/domain/0/backend/pci/1/0/state\0t\0")]
    );
    assert_eq!(
        store.get("/local/domain/0/backend/pci/1/0/state"),
        Some("4")
    );
    assert_eq!(store.get("/local/domain/0/backend/pci/1/1"), None);
    assert!(!store.serve().unwrap().busy);
}

#[test]
fn transactions() {
    let (mut kernel, mut store) = kernel();
    let begin = |kernel: &mut Kernel, store: &mut Store| {
        let reply = kernel.ask(store, TRANSACTION_START, 0, b"\0");
        let text = String::from_utf8(reply.payload).unwrap();
        text.trim_end_matches('\0').parse::<u32>().unwrap()
    };
    kernel.ask_all(&mut store, WATCH, 0, b"a\0t\0");
    let first = begin(&mut kernel, &mut store);
    let second = begin(&mut kernel, &mut store);
    assert!(first != 0 && second != 0 && first != second);
    assert_eq!(
        kernel.ask_all(&mut store, WRITE, first, b"a\x001"),
        [done(WRITE)],
        "nobody hears yet"
    );
    assert_eq!(
        kernel.ask(&mut store, READ, first, b"a\0"),
        reply(READ, b"1")
    );
    assert_eq!(kernel.ask(&mut store, READ, 0, b"a\0"), error("ENOENT"));
    assert_eq!(
        kernel.ask(&mut store, READ, second, b"a\0"),
        error("ENOENT")
    );
    assert_eq!(
        kernel.ask(&mut store, WRITE, second, b"b\x002"),
        done(WRITE)
    );
    assert_eq!(
        kernel.ask_all(&mut store, TRANSACTION_END, first, b"T\0"),
        [done(TRANSACTION_END), reply(EVENT, b"a\0t\0")]
    );
    assert_eq!(
        kernel.ask(&mut store, TRANSACTION_END, second, b"T\0"),
        error("EAGAIN")
    );
    assert_eq!(kernel.ask(&mut store, READ, 0, b"b\0"), error("ENOENT"));
    assert_eq!(kernel.ask(&mut store, READ, 0, b"a\0"), reply(READ, b"1"));
    assert_eq!(
        kernel.ask(&mut store, READ, second, b"a\0"),
        error("ENOENT"),
        "it has ended"
    );
    let third = begin(&mut kernel, &mut store);
    kernel.ask(&mut store, RM, third, b"a\0");
    assert_eq!(
        kernel.ask(&mut store, TRANSACTION_END, third, b"F\0"),
        done(TRANSACTION_END)
    );
    assert_eq!(kernel.ask(&mut store, READ, 0, b"a\0"), reply(READ, b"1"));
    let reader = begin(&mut kernel, &mut store);
    kernel.ask(&mut store, WRITE, 0, b"a\x009");
    assert_eq!(
        kernel.ask(&mut store, READ, reader, b"a\0"),
        reply(READ, b"1")
    );
    assert_eq!(
        kernel.ask(&mut store, TRANSACTION_END, reader, b"T\0"),
        done(TRANSACTION_END)
    );
}

#[test]
fn quotas() {
    let (mut kernel, mut store) = kernel();
    for number in 0..WATCHES_MAX {
        assert_eq!(
            kernel.ask(&mut store, WATCH, 0, format!("a\0{number}\0").as_bytes()),
            done(WATCH)
        );
    }
    assert_eq!(
        kernel.ask(&mut store, WATCH, 0, b"a\0more\0"),
        error("E2BIG")
    );
    for _ in 0..TRANSACTIONS_MAX {
        assert_eq!(
            kernel.ask(&mut store, TRANSACTION_START, 0, b"\0").kind,
            TRANSACTION_START
        );
    }
    assert_eq!(
        kernel.ask(&mut store, TRANSACTION_START, 0, b"\0"),
        error("ENOSPC")
    );
    for _ in 0..CHANGES_MAX {
        assert_eq!(kernel.ask(&mut store, WRITE, 1, b"b\0x"), done(WRITE));
    }
    assert_eq!(kernel.ask(&mut store, WRITE, 1, b"b\0x"), error("ENOSPC"));
    for number in 0..2 * tree::NODES_MAX {
        kernel.ask(&mut store, WRITE, 0, format!("n/{number}\0").as_bytes());
    }
    assert_eq!(kernel.ask(&mut store, WRITE, 0, b"m\0"), error("ENOSPC"));
    // There is no room for our side, either, which must know it.
    assert!(!store.set("/local/domain/0/new", "x"));
    assert_eq!(store.get("/local/domain/0/new"), None);
}

#[test]
fn a_kernel_that_does_not_read_is_not_served_on() {
    let (mut kernel, mut store) = kernel();
    for number in 0..100 {
        kernel.send(READ, 0, format!("a/{number}\0").as_bytes());
        let _ = store.serve().unwrap();
    }
    assert!(store.outgoing.len() <= 1);
    let replies = kernel.replies();
    assert!(
        replies.iter().all(|reply| *reply == error("ENOENT")),
        "{replies:?}"
    );
    let before = replies.len();
    let mut rest = 0;
    while store.serve().unwrap().busy {
        rest += kernel.replies().len();
    }
    assert!(before < 100 && before + rest > before);
}

#[test]
fn nonsense_ends_it() {
    let (kernel, mut store) = kernel();
    kernel.put(&[0xff; 16]);
    assert!(matches!(store.serve(), Err(StoreError::TooLong(u32::MAX))));
    let (kernel, mut store) = self::kernel();
    kernel
        .memory
        .write_obj(5000u32, GuestAddress(0x4000 + 2052))
        .unwrap();
    assert!(matches!(store.serve(), Err(StoreError::Ring(_))));
}

proptest! {
    /// Any bytes in any pieces: an end, and never more than a request's answers in our memory.
    #[test]
    fn hostile_kernels(
        messages in prop::collection::vec(
            (0u32..24, 0u32..4, prop::collection::vec(prop::sample::select(b"a/\0Tt1".to_vec()), 0..12), any::<bool>()),
            0..60,
        ),
    ) {
        let (mut kernel, mut store) = kernel();
        for (kind, transaction, payload, reads) in messages {
            kernel.send(kind, transaction, &payload);
            store.serve().unwrap();
            if reads {
                kernel.replies();
            }
            prop_assert!(store.outgoing.len() <= 1 + WATCHES_MAX * CHANGES_MAX);
        }
    }
}
