// SPDX-License-Identifier: GPL-2.0

//! What masks indexes, of the module's: compiled here as it is compiled there.

#[path = "../../../lg/sys/nospec.rs"]
mod masks;

#[test]
fn what_is_in_bounds_stays_and_all_else_is_0() {
    for len in [0, 1, 2, 3, 16, 1 << 30, usize::MAX / 2, usize::MAX] {
        for index in [
            0,
            1,
            2,
            3,
            15,
            16,
            1 << 30,
            usize::MAX / 2,
            usize::MAX - 1,
            usize::MAX,
        ] {
            let expected = if index < len { index } else { 0 };
            assert_eq!(masks::index(index, len), expected, "{index} of {len}");
        }
    }
}

#[test]
fn elements_are_those_of_the_slice() {
    let mut numbers = [7, 8, 9];
    for at in [0, 1, 2, 3, 4, usize::MAX] {
        assert_eq!(masks::get(&numbers, at), numbers.get(at));
        assert_eq!(
            masks::get_mut(&mut numbers, at).copied(),
            numbers.get(at).copied()
        );
    }
    assert_eq!(masks::get(&[0; 0], 0), None);
    if let Some(number) = masks::get_mut(&mut numbers, 2) {
        *number = 1;
    }
    assert_eq!(numbers, [7, 8, 1]);
}
