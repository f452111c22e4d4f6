// SPDX-License-Identifier: GPL-2.0
//! The escape key: Ctrl-a and another key speak to lg, everything else goes to the Guest.

/// Ctrl-a.
const ESCAPE: u8 = 0x01;

/// The user's wish.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wish {
    /// Ctrl-a x: end the Guest.
    Leave,
    /// Ctrl-a h: tell the keys.
    Help,
    /// Ctrl-a z: stop, and let the shell have its terminal.
    Suspend,
}

/// The text that [`Wish::Help`] prints.
pub const HELP: &str = "the keys:\nCtrl-a x  end the guest\nCtrl-a z  stop lg, for the shell's fg or bg\nCtrl-a h  this help\nCtrl-a Ctrl-a  send Ctrl-a";

/// Remembers whether the last key was Ctrl-a.
#[derive(Default)]
pub struct Keys {
    escaped: bool,
}

impl Keys {
    /// Takes the keys in `typed`: appends what is for the Guest to `guest`, and returns what is for
    /// lg.
    pub fn take(&mut self, typed: &[u8], guest: &mut Vec<u8>) -> Vec<Wish> {
        let mut wishes = Vec::new();
        for &key in typed {
            match (self.escaped, key) {
                (false, ESCAPE) => {
                    self.escaped = true;
                    continue;
                }
                (true, b'x' | b'X') => wishes.push(Wish::Leave),
                (true, b'z' | b'Z') => wishes.push(Wish::Suspend),
                (true, b'h' | b'H' | b'?') => wishes.push(Wish::Help),
                (false, _) | (true, ESCAPE) => guest.push(key),
                // Not ours: the Guest gets both keys.
                (true, _) => guest.extend([ESCAPE, key]),
            }
            self.escaped = false;
        }
        wishes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn take(typed: &[u8]) -> (Vec<u8>, Vec<Wish>) {
        let mut guest = Vec::new();
        let wishes = Keys::default().take(typed, &mut guest);
        (guest, wishes)
    }

    #[test]
    fn keys() {
        for (typed, guest, wishes) in [
            (&b"ls\r"[..], &b"ls\r"[..], &[][..]),
            (b"\x01x", b"", &[Wish::Leave]),
            (b"a\x01hb", b"ab", &[Wish::Help]),
            (b"a\x01zb", b"ab", &[Wish::Suspend]),
            (b"\x01\x01", b"\x01", &[]),
            (b"\x01\x01x", b"\x01x", &[]),
            (b"\x01k", b"\x01k", &[]),
            (b"\x01", b"", &[]),
        ] {
            assert_eq!(take(typed), (guest.to_vec(), wishes.to_vec()), "{typed:?}");
        }
    }

    proptest! {
        #[test]
        fn reads_can_be_split_anywhere(
            typed in prop::collection::vec(prop_oneof![Just(ESCAPE), any::<u8>()], 0..20),
            at in any::<prop::sample::Index>(),
        ) {
            let (first, second) = typed.split_at(at.index(typed.len() + 1));
            let (mut keys, mut guest) = (Keys::default(), Vec::new());
            let mut wishes = keys.take(first, &mut guest);
            wishes.extend(keys.take(second, &mut guest));
            prop_assert_eq!((guest, wishes), take(&typed));
        }

        #[test]
        fn nothing_else_is_lost(typed in prop::collection::vec(2u8.., 0..20)) {
            prop_assert_eq!(take(&typed), (typed, vec![]));
        }
    }
}
