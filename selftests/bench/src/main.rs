// SPDX-License-Identifier: GPL-2.0
//! Measures what the kernel's common paths and its devices cost, in ticks of the time stamp counter.
//! The same program runs in the kernel that is booted directly, and in lg's Guest.

mod characters;
mod clock;
mod disk;
mod files;
mod kernel;
mod stream;

use std::path::Path;
use std::process::ExitCode;

/// One workload on a device, done.
struct Workload {
    name: &'static str,
    /// Bytes that a request moves.
    size: usize,
    requests: u64,
    /// What all requests took.
    ticks: u64,
}

fn print(device: &str, workloads: impl IntoIterator<Item = Workload>) {
    for workload in workloads {
        let Workload {
            name,
            size,
            requests,
            ticks,
        } = workload;
        println!("{device} {name} {size} {requests} {ticks}");
    }
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [] => kernel::paths(),
        // In thousandths: a system call may take none.
        ["walks"] if clock::count_walks() => kernel::paths(),
        // What kernel::paths runs.
        ["exit"] => {}
        ["rng"] => print("rng", [characters::random()]),
        ["console"] => print("console", [characters::line()]),
        ["disk", path] => print("disk", disk::workloads(Path::new(path))),
        ["share", directory] => print("share", files::workloads(Path::new(directory))),
        ["net", address] => print("net", stream::workloads(&|| stream::tcp(address))),
        ["vsock"] => print("vsock", stream::workloads(&stream::vsock)),
        ["serve", address, socket] => stream::serve(address, Path::new(socket)),
        _ => {
            eprintln!("lguest-bench: this is for scripts/bench and scripts/bench-devices");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
