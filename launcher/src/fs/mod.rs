// SPDX-License-Identifier: GPL-2.0
//! A file server: directories of the Host, served to a Guest that is not trusted.
//!
//! The Guest speaks FUSE, which fuse-backend-rs decodes; [`crate::virtio::fs`] is the device it
//! comes through. [`share`] is what the user asks for · [`server`] answers the requests · [`inodes`]
//! knows which file a number of the Guest's stands for · [`handles`] has what is open, [`locks`] what
//! is locked · [`newer`] are requests that the library does not know · [`host`] is the system calls:
//! each takes a descriptor and at most one name, so there is no path that could lead out of the
//! directory · [`attributes`] changes modes, owners and the like, in a process of its own. [`cow`]
//! lies over all that for a root in which the Guest may change everything, and nothing of the Host's.

pub mod attributes;
pub mod cow;
pub mod handles;
pub mod host;
pub mod inodes;
pub mod locks;
pub mod newer;
pub mod server;
pub mod share;
mod statvfs;
