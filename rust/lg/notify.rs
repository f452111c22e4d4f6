// SPDX-License-Identifier: GPL-2.0

//! Kicks of virtqueues: which eventfd a queue's goes to.

use crate::{
    abi::{
        lguest_notifyfd,
        LGUEST_MAX_NOTIFYFDS, //
    },
    blame::Stop,
    sys::{
        eventfd::EventFd,
        page::Wait, //
    },
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::Mutex, //
};

struct Queue {
    gpa: u64,
    index: u32,
    event: EventFd,
}

/// The queues of a VM that have an eventfd. Its lock is the last one that is taken.
#[pin_data]
pub(crate) struct Notify {
    #[pin]
    queues: Mutex<KVec<Queue>>,
}

impl Notify {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            queues <- new_mutex!(KVec::new(), "lg::notify"),
        })
    }

    /// Replaces the eventfd if the queue has one already.
    pub(crate) fn set(&self, new: lguest_notifyfd) -> Result {
        let event = EventFd::from_fd(new.fd)?;
        let mut queues = self.queues.lock();
        if let Some(queue) = queues
            .iter_mut()
            .find(|q| (q.gpa, q.index) == (new.gpa, new.queue))
        {
            queue.event = event;
            return Ok(());
        }
        if queues.len() >= LGUEST_MAX_NOTIFYFDS as usize {
            return Err(ENOSPC);
        }
        let queue = Queue {
            gpa: new.gpa,
            index: new.queue,
            event,
        };
        queues.push(queue, GFP_KERNEL_ACCOUNT)?;
        Ok(())
    }

    /// Signals the eventfd of a queue; `false` if it has none.
    pub(crate) fn signal(&self, gpa: u64, index: u64, wait: Wait) -> Result<bool, Stop> {
        let queues = match wait {
            Wait::Allowed => self.queues.lock(),
            Wait::Forbidden => self.queues.try_lock().ok_or(Stop::Later)?,
        };
        let queue = queues
            .iter()
            .find(|q| (q.gpa, u64::from(q.index)) == (gpa, index));
        if let Some(queue) = queue {
            queue.event.signal();
        }
        Ok(queue.is_some())
    }
}
