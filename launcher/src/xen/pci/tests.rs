// SPDX-License-Identifier: GPL-2.0
//! The bus, as xen-pcifront sees it: by the xenstore, and by a page.

use proptest::prelude::*;
use virtio_bindings::virtio_config::VIRTIO_F_ACCESS_PLATFORM;

use super::*;
use crate::devices::pci::Routes;
use crate::devices::rng::Rng;
use crate::devices::virtio::Virtio;
use crate::devices::Interrupt;
use crate::xen::link::{CLOSED, CONNECTED};
use crate::xen::testing::kernel::Kernel;

const FRONTEND: &str = "/local/domain/1/device/pci/0";
const BACKEND: &str = "/local/domain/0/backend/pci/1/0";
const INIT_WAIT: &str = "2";
const INITIALISED: &str = "3";
const CLOSING: &str = "5";
const STORE: u64 = 0x4000;
const TABLE: u64 = 0x8000;
const PAGE: u64 = 0x6000;
const GRANT: u64 = 9;
const RAM_PAGES: u64 = 0x100;
const WRITE: u32 = 11;
const WATCH: u32 = 4;

/// A kernel, and two entropy devices on its bus.
struct Front {
    kernel: Kernel,
    memory: Memory,
    store: Store,
    bus: Bus,
}

/// The fields of a request, and the messages that it is for.
#[derive(Clone, Copy, Default)]
struct Ask<'a> {
    command: u32,
    domain: u32,
    bus: u32,
    function: u32,
    offset: u32,
    size: u32,
    value: u32,
    messages: &'a [u16],
}

impl Front {
    fn new() -> Self {
        let memory = crate::memory::create(1 << 20).unwrap();
        let function = |number| {
            let line = line(number);
            let routes = Arc::new(Routes::new(1, line.into()));
            let interrupt = Arc::new(Interrupt::new(|_| {}));
            let transport = 1 << VIRTIO_F_ACCESS_PLATFORM;
            let device = Virtio::new(
                Box::new(Rng),
                transport,
                memory.clone().into(),
                interrupt,
                |_, _| {},
            );
            let bar = (1 << 32) + u64::from(number) * 0x8000;
            Arc::new(Pci::new(Arc::new(device.unwrap()), routes, bar, line))
        };
        let functions = (0..2).map(function).collect();
        let mut store = Store::new(memory.clone(), STORE);
        let grants = Grants::new(memory.clone(), TABLE, 1, RAM_PAGES);
        let entry = 1 | ((PAGE >> 12) << 32);
        memory
            .write_obj(entry, GuestAddress(TABLE + 8 * GRANT))
            .unwrap();
        let kernel = Kernel::new(memory.clone(), STORE);
        let bus = Bus::new(memory.clone(), grants, functions);
        bus.announce(&mut store);
        Self {
            kernel,
            bus,
            memory,
            store,
        }
    }

    fn write(&mut self, name: &str, value: &str) {
        let payload = format!("device/pci/0/{name}\0{value}");
        self.kernel
            .ask(&mut self.store, WRITE, 0, payload.as_bytes());
    }

    fn connect(&mut self, grant: &str, port: &str) -> bool {
        self.write("pci-op-ref", grant);
        self.write("event-channel", port);
        self.write("magic", "7");
        self.write("state", INITIALISED);
        assert!(self.bus.follow(&mut self.store));
        assert!(!self.bus.follow(&mut self.store));
        self.state() == CONNECTED
    }

    fn state(&self) -> String {
        self.store.get(&format!("{BACKEND}/state")).unwrap().into()
    }

    fn put(&self, ask: Ask<'_>) {
        let words = [
            PCI_ACTIVE | 6,
            ask.command,
            0x55,
            ask.domain,
            ask.bus,
            ask.function,
            ask.offset,
            ask.size,
            ask.value,
            0,
        ];
        self.memory.write_obj(words, GuestAddress(PAGE)).unwrap();
        for (at, &message) in (PAGE + 40..).step_by(4).zip(ask.messages) {
            self.memory
                .write_obj([0xffff, message], GuestAddress(at))
                .unwrap();
        }
    }

    fn word(&self, at: u64) -> u32 {
        self.memory.read_obj(GuestAddress(PAGE + at)).unwrap()
    }

    /// The answer: the value, or an error.
    fn ask(&mut self, ask: Ask<'_>) -> Result<u32, i32> {
        self.put(ask);
        assert!(self.bus.serve(7));
        assert_eq!(self.word(0), 6, "answered, and other bits as they were");
        match self.word(8) as i32 {
            0 => Ok(self.word(32)),
            error => Err(error),
        }
    }

    fn config(&mut self, function: u32, offset: u32, size: u32) -> Result<u32, i32> {
        self.ask(Ask {
            function,
            offset,
            size,
            ..Ask::default()
        })
    }

    fn enable(&mut self, messages: &[u16]) -> Result<Vec<u16>, i32> {
        let value = messages.len() as u32;
        self.ask(Ask {
            command: ENABLE_MESSAGES,
            value,
            messages,
            ..Ask::default()
        })?;
        let pirq = |index| {
            self.memory
                .read_obj(GuestAddress(PAGE + 40 + 4 * index))
                .unwrap()
        };
        Ok((0..u64::from(value)).map(pirq).collect())
    }

    fn disable(&mut self) {
        let ask = Ask {
            command: DISABLE_MESSAGES,
            ..Ask::default()
        };
        assert_eq!(self.ask(ask), Ok(0));
    }
}

#[test]
fn they_meet_and_part() {
    let mut front = Front::new();
    assert!(
        !front.bus.follow(&mut front.store),
        "there is no frontend yet"
    );
    assert_eq!(front.state(), INIT_WAIT);
    front.kernel.ask_all(
        &mut front.store,
        WATCH,
        0,
        format!("{BACKEND}/state\0t\0").as_bytes(),
    );
    assert!(front.connect("9", "7"));
    front.store.serve().unwrap();
    assert_eq!(front.kernel.replies().len(), 1, "the kernel hears of it");
    front.write("state", CONNECTED);
    assert!(!front.bus.follow(&mut front.store));
    assert_eq!(front.config(0, 0, 4), Ok(0x1044_1af4));
    assert_eq!(front.enable(&[0]).unwrap().len(), 1);
    front.write("state", CLOSING);
    assert!(front.bus.follow(&mut front.store));
    assert_eq!(front.state(), CLOSING);
    front.put(Ask {
        size: 4,
        ..Ask::default()
    });
    assert!(!front.bus.serve(7), "nobody is there");
    assert_eq!(front.bus.free.len(), PIRQS - FIRST_MESSAGE as usize);
    front.write("state", CLOSED);
    assert!(front.bus.follow(&mut front.store));
    assert_eq!(front.state(), CLOSED);
    assert!(front.connect("9", "7"), "again");
}

/// Linux starts from the beginning if it reads "initialising" after it has begun to connect.
#[test]
fn who_has_begun_to_connect_is_no_longer_new() {
    let mut front = Front::new();
    let state = |front: &Front| {
        front
            .store
            .get(&format!("{FRONTEND}/state"))
            .unwrap()
            .to_string()
    };
    let payload = b"device\0t\0";
    front.kernel.ask_all(&mut front.store, WATCH, 0, payload);
    front.kernel.send(WRITE, 0, b"device/pci/0/pci-op-ref\x009");
    assert!(front.store.serve().unwrap().changed);
    assert_eq!(front.kernel.replies(), [], "it does not hear of it yet");
    assert!(front.bus.follow(&mut front.store));
    assert_eq!(state(&front), INIT_WAIT);
    assert!(!front.bus.follow(&mut front.store));
    assert!(front.connect("9", "7"));
}

#[test]
fn a_bad_frontend_is_not_connected() {
    for (grant, port, magic) in [
        ("8", "7", "7"),
        ("512", "7", "7"),
        ("-1", "7", "7"),
        ("", "7", "7"),
        ("9", "x", "7"),
        ("9", "7", "6"),
    ] {
        let mut front = Front::new();
        front.write("pci-op-ref", grant);
        front.write("event-channel", port);
        front.write("magic", magic);
        front.write("state", INITIALISED);
        assert!(front.bus.follow(&mut front.store));
        assert_eq!(front.state(), CLOSED, "{grant} {port} {magic}");
        assert!(!front.bus.follow(&mut front.store), "once");
    }
}

#[test]
fn who_is_on_the_bus() {
    let mut front = Front::new();
    front.connect("9", "7");
    assert_eq!(front.config(8, 0x3c, 1), Ok(17));
    for ask in [
        Ask {
            function: 16,
            ..Ask::default()
        },
        Ask {
            function: 1,
            ..Ask::default()
        },
        Ask {
            function: u32::MAX,
            ..Ask::default()
        },
        Ask {
            bus: 1,
            ..Ask::default()
        },
        Ask {
            domain: 1,
            ..Ask::default()
        },
    ] {
        assert_eq!(front.ask(Ask { size: 4, ..ask }), Err(NO_DEVICE));
    }
    assert_eq!(front.config(0, 1, 4), Err(BAD_OFFSET));
    assert_eq!(front.config(0, 256, 4), Err(BAD_OFFSET));
    let write = Ask {
        command: CONFIG_WRITE,
        offset: 4,
        size: 2,
        value: 6,
        ..Ask::default()
    };
    assert_eq!(front.ask(write), Ok(6));
    assert_eq!(front.config(0, 4, 2), Ok(6));
    for command in [2, 3, 6, u32::MAX] {
        assert_eq!(
            front.ask(Ask {
                command,
                ..Ask::default()
            }),
            Err(NOT_IMPLEMENTED)
        );
    }
    front.put(Ask {
        size: 4,
        ..Ask::default()
    });
    assert!(!front.bus.serve(8), "another port");
    front.memory.write_obj(6u32, GuestAddress(PAGE)).unwrap();
    assert!(!front.bus.serve(7), "it is no request");
}

#[test]
fn messages_have_interrupts_of_their_own() {
    let mut front = Front::new();
    front.connect("9", "7");
    let pirqs = front.enable(&[0, 1]).unwrap();
    assert!(pirqs.iter().all(|&pirq| (48..256).contains(&pirq)) && pirqs[0] != pirqs[1]);
    for bad in [&[0, 0][..], &[2], &[u16::MAX], &[]] {
        assert_eq!(front.enable(bad), Err(OP_FAILED), "{bad:?}");
        assert_eq!(front.bus.free.len(), 208, "none is lost");
    }
    let many = Ask {
        command: ENABLE_MESSAGES,
        value: u32::MAX,
        messages: &[0],
        ..Ask::default()
    };
    assert_eq!(front.ask(many), Err(OP_FAILED));
    for _ in 0..300 {
        front.enable(&[1, 0]).unwrap();
    }
    front.disable();
    front.disable();
    assert_eq!(front.bus.free.len(), 208);
    let mut free = front.bus.free.clone();
    free.sort_unstable();
    free.dedup();
    assert_eq!(free.len(), 208);
}

proptest! {
    /// Any requests: no panic, and all interrupts are somewhere.
    #[test]
    fn hostile_requests(requests in prop::collection::vec(
        (0u32..7, prop::sample::select(vec![0u32, 8, 9, 16]), prop_oneof![0u32..0x110, any::<u32>()],
         prop::sample::select(vec![1u32, 2, 4, 4, 3]), prop_oneof![0u32..4, any::<u32>()],
         prop::collection::vec(0u16..3, 0..4)),
        0..40,
    )) {
        let mut front = Front::new();
        front.connect("9", "7");
        for (command, function, offset, size, value, messages) in requests {
            let messages = &messages[..];
            let _ = front.ask(Ask { command, function, offset, size, value, messages, ..Ask::default() });
        }
        front.write("state", CLOSED);
        front.bus.follow(&mut front.store);
        prop_assert_eq!(front.bus.free.len(), 208);
    }
}
