// SPDX-License-Identifier: GPL-2.0
//! The checksums of TCP and UDP (RFC 793, 768, 1071), which a frontend may leave blank.

const IPV4: [u8; 2] = [0x08, 0x00];
/// Of an Ethernet header.
const HEADER: usize = 14;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Fills in the checksum of the TCP segment or UDP datagram that is whole in `frame`, by IPv4. None: there is no such.
pub(super) fn fill(frame: &mut [u8]) -> Option<()> {
    let (ethernet, packet) = frame.split_at_mut_checked(HEADER)?;
    let word = |packet: &[u8], at| Some(usize::from(be(packet.get(at..at + 2)?)));
    let first = *packet.first()?;
    if ethernet[12..] != IPV4 || first >> 4 != 4 {
        return None;
    }
    let (header, length) = (usize::from(first & 0xf) * 4, word(packet, 2)?);
    // A fragment has an offset, or another follows.
    let is_fragment = word(packet, 6)? & 0x3fff != 0;
    let packet = packet.get_mut(..length).filter(|_| !is_fragment)?;
    let (ip, segment) = packet.split_at_mut_checked(header)?;
    let addresses: [u8; 8] = ip.get(12..20)?.try_into().ok()?;
    let protocol = ip[9];
    let place = match protocol {
        TCP => 16,
        UDP => 6,
        _ => return None,
    };
    segment.get_mut(place..place + 2)?.fill(0);
    let [high, low] = (segment.len() as u16).to_be_bytes();
    let pseudo = sum(&addresses) + sum(&[0, protocol, high, low]);
    let checksum = match !fold(pseudo + sum(segment)) {
        // With UDP, 0 says that there is none.
        0 if protocol == UDP => 0xffff,
        checksum => checksum,
    };
    segment[place..place + 2].copy_from_slice(&checksum.to_be_bytes());
    Some(())
}

/// Words of up to 64 KiB: it does not overflow.
fn sum(bytes: &[u8]) -> u32 {
    let words = bytes.chunks_exact(2);
    // The last byte of an odd number is the upper half of a word.
    let last = words.remainder().first().copied().unwrap_or(0);
    words.map(|word| u32::from(be(word))).sum::<u32>() + (u32::from(last) << 8)
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn be(word: &[u8]) -> u16 {
    u16::from_be_bytes([word[0], word[1]])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A frame with `content` behind an IPv4 header.
    fn frame(protocol: u8, content: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend(IPV4);
        frame.extend([0x45, 0]);
        frame.extend((20 + content.len() as u16).to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2]);
        frame.extend(content);
        frame
    }

    /// As its receiver looks at it: 0xffff is right.
    fn seen(frame: &[u8]) -> u16 {
        let (ip, segment) = (&frame[HEADER..HEADER + 20], &frame[HEADER + 20..]);
        let length = (segment.len() as u16).to_be_bytes();
        fold(sum(&ip[12..20]) + u32::from(ip[9]) + sum(&length) + sum(segment))
    }

    #[test]
    fn a_datagram_that_is_known() {
        // From port 53 to 53, "abc"; by hand: 0a00+020f+0a00+0202 +0011+000b +0035+0035+000b +6162+6300.
        let mut datagram = frame(UDP, &[0, 53, 0, 53, 0, 11, 0xde, 0xad, b'a', b'b', b'c']);
        fill(&mut datagram).unwrap();
        assert_eq!(datagram[HEADER + 26..HEADER + 28], 0x22fb_u16.to_be_bytes());
        assert_eq!(seen(&datagram), 0xffff);
    }

    #[test]
    fn none_and_zero_differ_with_udp() {
        // The two last bytes make the sum 0xffff, and its complement 0.
        let mut datagram = frame(UDP, &[0, 53, 0, 53, 0, 10, 0, 0, 0, 0]);
        fill(&mut datagram).unwrap();
        let checksum: [u8; 2] = datagram[HEADER + 26..HEADER + 28].try_into().unwrap();
        datagram[HEADER + 28..].copy_from_slice(&checksum);
        fill(&mut datagram).unwrap();
        assert_eq!(datagram[HEADER + 26..HEADER + 28], [0xff, 0xff]);
    }

    #[test]
    fn what_has_none() {
        let good = frame(TCP, &[1; 20]);
        assert!(fill(&mut good.clone()).is_some());
        let with = |at: usize, byte: u8| {
            let mut frame = good.clone();
            frame[at] = byte;
            frame
        };
        for mut bad in [
            Vec::new(),
            good[..HEADER].to_vec(),
            good[..good.len() - 1].to_vec(),
            with(12, 0x86),
            with(HEADER, 0x65),
            with(HEADER, 0x44),
            with(HEADER + 3, 19),
            with(HEADER + 6, 0x20),
            with(HEADER + 7, 1),
            with(HEADER + 9, 1),
            frame(TCP, &[1; 17]),
            frame(UDP, &[1; 7]),
        ] {
            assert!(fill(&mut bad).is_none(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_sent_is_right(is_tcp in any::<bool>(), content in prop::collection::vec(any::<u8>(), 20..2000),
            behind in prop::collection::vec(any::<u8>(), 0..20)) {
            let mut frame = frame(if is_tcp { TCP } else { UDP }, &content);
            let length = frame.len();
            // What is behind the packet is none of it.
            frame.extend(behind);
            fill(&mut frame).unwrap();
            prop_assert_eq!(seen(&frame[..length]), 0xffff);
        }

        #[test]
        fn any_bytes(mut bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            fill(&mut bytes);
            if bytes.len() > HEADER {
                bytes[12..15].copy_from_slice(&[8, 0, 0x45]);
                fill(&mut bytes);
            }
        }
    }
}
