// SPDX-License-Identifier: GPL-2.0
//! A fuzzer's bytes, as the deeds of a kernel that is out for trouble.
//!
//! It begins in good order, with the PCI bus and a disk connected, so that few bytes get deep.

use std::sync::Arc;

use virtio_bindings::virtio_config::VIRTIO_F_ACCESS_PLATFORM;
use vm_memory::{Bytes, GuestAddress};
use xen_abi::handover::STORE_PORT;

use super::kernel::Kernel;
use crate::boot::xen::Places;
use crate::devices::blk::disk::Disk;
use crate::devices::net::cable::Cable;
use crate::devices::net::peer::Mac;
use crate::devices::pci::{Pci, Routes, BAR_SIZE};
use crate::devices::rng::Rng;
use crate::devices::testing::fuzz::Choices;
use crate::devices::virtio::Virtio;
use crate::devices::{Interrupt, Window};
use crate::memory::dma::Dma;
use crate::memory::Memory;
use crate::xen::events::Events;
use crate::xen::store::Store;
use crate::xen::{pci, Xen};

/// Deeds per input: more find nothing new, and take their time.
const DEEDS_MAX: usize = 64;

const STORE: u64 = 0x4000;
const CONSOLE: u64 = 0x5000;
const BUS: u64 = 0x6000;
const RING: u64 = 0x7000;
/// Those of frames for the peer, and of empty pages.
const TRANSMIT: u64 = 0x8000;
const RECEIVE: u64 = 0x9000;
const GRANTS: u64 = 0xc_0000;
const RAISED: u64 = 0xf_0000;
const NOTIFY: u64 = 0x10_0000;
const BUS_PORT: u32 = 7;
const DISK_PORT: u32 = 8;
const NET_PORT: u32 = 9;
const WRITE: u32 = 11;

const PLACES: Places = Places {
    ram_pages: 0xc0,
    vcpus: 1,
    store: STORE,
    console: CONSOLE,
    grants: GRANTS,
    raised: RAISED,
    notify: NOTIFY,
};

/// What a payload is made of.
const WORDS: [&[u8]; 12] = [
    b"\0",
    b"/",
    b"a",
    b"b",
    b"device",
    b"/local/domain/0",
    b"pci/0",
    b"state",
    b"/",
    b"T\0",
    b"1",
    b"4",
];

/// A kernel that sends whole messages to the xenstore, in any order.
pub fn store(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let memory = crate::memory::create(1 << 20).expect("memory");
    let mut kernel = Kernel::new(memory.clone(), STORE);
    let mut store = Store::new(memory, STORE);
    for _ in 0..DEEDS_MAX {
        match choices.byte() % 8 {
            0 => drop(kernel.replies()),
            1 => {
                store.set("/local/domain/0/a", "x");
            }
            _ => send(&mut kernel, &mut choices),
        }
        if choices.is_empty() || store.serve().is_err() {
            break;
        }
    }
}

fn send(kernel: &mut Kernel, choices: &mut Choices<'_>) {
    let (kind, transaction) = (choices.byte() % 24, choices.byte() % 4);
    let count = choices.byte() % 8;
    let payload = (0..count).flat_map(|_| WORDS[choices.one_of(WORDS.len())].iter().copied());
    let payload: Vec<_> = payload.collect();
    kernel.send(kind.into(), transaction.into(), &payload);
}

/// A kernel with this disk that stores anything into rings, grants and requests, calls all ports, and sets up devices.
pub fn all(bytes: &[u8], disk: Disk) {
    let mut choices = Choices::new(bytes);
    let memory = crate::memory::create(1 << 20).expect("memory");
    let events = Arc::new(Events::new(memory.clone(), RAISED, || {}));
    let dma = Dma::with_grants(memory.clone(), PLACES.grants(&memory));
    let functions: Vec<_> = (0..2)
        .map(|number| function(number, &dma, &events))
        .collect();
    let bus = functions.clone();
    let (mut kernel, xen) = connected(memory, events, bus, vec![disk], None);
    for _ in 0..DEEDS_MAX {
        if choices.is_empty() {
            break;
        }
        act(&mut kernel, &xen, &functions, &mut choices);
        xen.beside().iter().for_each(|backend| backend.process());
    }
    xen.finish();
}

/// A kernel that has this disk alone.
pub fn disk(bytes: &[u8], disk: Disk) {
    let ask =
        |memory: &Memory, xen: &Xen, choices: &mut Choices<'_>| ask_disk(memory, xen, choices);
    beside(bytes, vec![disk], None, ask);
}

/// A kernel that has this cable alone. `from_peer` does what the peer may do.
pub fn net(bytes: &[u8], cable: Cable, mut from_peer: impl FnMut(&mut Choices<'_>)) {
    let ask = |memory: &Memory, xen: &Xen, choices: &mut Choices<'_>| match choices.byte() % 4 {
        0 => from_peer(choices),
        _ => ask_network(memory, xen, choices),
    };
    beside(bytes, Vec::new(), Some(cable), ask);
}

/// A kernel without a bus. Mostly it does as `ask` says.
fn beside(
    bytes: &[u8],
    disks: Vec<Disk>,
    cable: Option<Cable>,
    mut ask: impl FnMut(&Memory, &Xen, &mut Choices<'_>),
) {
    let mut choices = Choices::new(bytes);
    let memory = crate::memory::create(1 << 20).expect("memory");
    let events = Arc::new(Events::new(memory.clone(), RAISED, || {}));
    let (mut kernel, xen) = connected(memory.clone(), events, Vec::new(), disks, cable);
    for _ in 0..DEEDS_MAX {
        if choices.is_empty() {
            break;
        }
        match choices.byte() % 16 {
            0 => {
                let page = [GRANTS, RING, TRANSMIT, RECEIVE][choices.one_of(4)];
                let place = GuestAddress(page + u64::from(choices.byte() % 64) * 4);
                memory.write_obj(choices.u32(), place).expect("it is RAM");
            }
            1 => {
                let node = ["vbd/51712/state", "vif/0/state"][choices.one_of(2)];
                let state = choices.byte() % 8;
                kernel.send(WRITE, 0, format!("device/{node}\0{state}").as_bytes());
                xen.notify(NOTIFY, STORE_PORT.into());
                kernel.replies();
            }
            _ => ask(&memory, &xen, &mut choices),
        }
        xen.beside().iter().for_each(|backend| backend.process());
    }
    xen.finish();
}

/// A kernel with all of this, which is connected.
fn connected(
    memory: Memory,
    events: Arc<Events>,
    functions: Vec<Arc<Pci>>,
    disks: Vec<Disk>,
    cable: Option<Cable>,
) -> (Kernel, Xen) {
    let console = (Arc::default(), Box::new(|_: &[u8]| {}) as _);
    let network = cable.map(|cable| (Mac([2; 6]), cable));
    let xen = Xen::new(&memory, &PLACES, functions, disks, network, console, events);
    let xen = xen.expect("there are descriptors");
    let mut kernel = Kernel::new(memory, STORE);
    connect(&mut kernel, &xen);
    (kernel, xen)
}

fn function(number: u8, memory: &Dma, events: &Arc<Events>) -> Arc<Pci> {
    let line = pci::line(number);
    let routes = Arc::new(Routes::new(1, line.into()));
    let (ways, events) = (routes.clone(), events.clone());
    let raise = move |cause| {
        if let Some(pirq) = ways.of(cause) {
            events.pirq(pirq);
        }
    };
    let transport = 1 << VIRTIO_F_ACCESS_PLATFORM;
    let interrupt = Arc::new(Interrupt::new(raise));
    let device = Virtio::new(
        Box::new(Rng),
        transport,
        memory.clone(),
        interrupt,
        |_, _| {},
    );
    let device = Arc::new(device.expect("a device"));
    let bar = (1 << 32) + u64::from(number) * BAR_SIZE;
    Arc::new(Pci::new(device, routes, bar, line))
}

fn connect(kernel: &mut Kernel, xen: &Xen) {
    let memory = kernel.memory.clone();
    for (grant, page) in (1..).zip([BUS, RING, TRANSMIT, RECEIVE]) {
        memory
            .write_obj(1 | ((page >> 12) << 32), GuestAddress(GRANTS + 8 * grant))
            .expect("it is RAM");
    }
    let nodes = [
        ("pci/0/pci-op-ref", "1"),
        ("pci/0/event-channel", "7"),
        ("pci/0/magic", "7"),
        ("pci/0/state", "3"),
        ("vbd/51712/ring-ref", "2"),
        ("vbd/51712/event-channel", "8"),
        ("vbd/51712/state", "3"),
        ("vif/0/tx-ring-ref", "3"),
        ("vif/0/rx-ring-ref", "4"),
        ("vif/0/event-channel", "9"),
        ("vif/0/request-rx-copy", "1"),
        ("vif/0/feature-sg", "1"),
        ("vif/0/state", "4"),
    ];
    for (name, value) in nodes {
        kernel.send(WRITE, 0, format!("device/{name}\0{value}").as_bytes());
        xen.notify(NOTIFY, STORE_PORT.into());
        kernel.replies();
    }
}

/// Asks the disk for something, of grants that may be there.
fn ask_disk(memory: &Memory, xen: &Xen, choices: &mut Choices<'_>) {
    let added: u32 = memory.read_obj(GuestAddress(RING)).expect("it is RAM");
    let slot = 64 + (added % 32) as usize * 112;
    let mut request = [0; 112];
    request[0] = choices.byte() % 8;
    request[1] = choices.byte() % 13;
    request[16] = choices.byte() % 80;
    for piece in request[24..].chunks_exact_mut(8) {
        piece[0] = choices.byte() % 8;
        piece[4] = choices.byte() % 9;
        piece[5] = choices.byte() % 9;
    }
    let place = GuestAddress(RING + slot as u64);
    memory.write_slice(&request, place).expect("it is RAM");
    memory
        .write_obj(added.wrapping_add(1), GuestAddress(RING))
        .expect("it is RAM");
    xen.notify(NOTIFY, DISK_PORT.into());
}

/// Adds a piece of a frame for the peer, or an empty page, of a grant that may be there.
fn ask_network(memory: &Memory, xen: &Xen, choices: &mut Choices<'_>) {
    let (ring, size) = [(TRANSMIT, 12), (RECEIVE, 8)][choices.one_of(2)];
    let added: u32 = memory.read_obj(GuestAddress(ring)).expect("it is RAM");
    let mut request = [0; 12];
    if ring == TRANSMIT {
        request[0] = choices.byte() % 8;
        request[4..6].copy_from_slice(&(choices.u16() % 0x1100).to_le_bytes());
        request[6] = choices.byte() % 16;
        request[10..].copy_from_slice(&(choices.u16() % 0x2100).to_le_bytes());
    } else {
        request[4] = choices.byte() % 8;
    }
    let place = GuestAddress(ring + 64 + u64::from(added % 256) * size as u64);
    memory
        .write_slice(&request[..size], place)
        .expect("it is RAM");
    memory
        .write_obj(added.wrapping_add(1), GuestAddress(ring))
        .expect("it is RAM");
    xen.notify(NOTIFY, NET_PORT.into());
}

fn act(kernel: &mut Kernel, xen: &Xen, functions: &[Arc<Pci>], choices: &mut Choices<'_>) {
    let memory = kernel.memory.clone();
    let function = &functions[choices.one_of(functions.len())];
    match choices.byte() % 9 {
        8 => ask_disk(&memory, xen, choices),
        0 | 1 => {
            let command = u32::from(choices.byte() % 7);
            let (device, offset) = (u32::from(choices.byte() % 4) * 8, u32::from(choices.byte()));
            let (size, value) = (1 << (choices.byte() % 4), choices.u32());
            let words = [1, command, 0, 0, 0, device, offset, size, value, 0];
            memory
                .write_obj(words, GuestAddress(BUS))
                .expect("it is RAM");
            xen.notify(NOTIFY, BUS_PORT.into());
        }
        2 => {
            let page = [STORE, CONSOLE, BUS, GRANTS, RING][choices.one_of(5)];
            // The indices of both rings are at 2048 and 3072.
            let offset = [0, 2048, 3072][choices.one_of(3)] + u64::from(choices.byte() % 64) * 4;
            memory
                .write_obj(choices.u32(), GuestAddress(page + offset))
                .expect("it is RAM");
        }
        3 => xen.notify(NOTIFY, choices.byte().into()),
        4 => {
            send(kernel, choices);
            xen.notify(NOTIFY, STORE_PORT.into());
        }
        5 => drop(kernel.replies()),
        6 => {
            let (offset, size) = (u64::from(choices.u16()) % BAR_SIZE, 1 << choices.one_of(4));
            function.store(offset, &choices.u64().to_le_bytes()[..size]);
            function.load(offset, &mut [0; 8][..size]);
        }
        _ => function.device().process(0),
    }
}
