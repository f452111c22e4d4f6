// SPDX-License-Identifier: GPL-2.0
//! Decompression in the formats which a kernel's build offers.

mod lzo;

use std::io::{self, Read};

/// No kernel unpacks to more than this many bytes.
pub(crate) const LIMIT: usize = 1 << 30;

/// The formats of compression.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Format {
    Gzip,
    Xz,
    Lzma,
    Zstd,
    /// The legacy frames of `lz4 -l`, which the kernel uses.
    Lz4,
    Bzip2,
    Lzo,
}

/// The reasons why something was not unpacked.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum UnpackError {
    #[error("what is in it is compressed in an unknown way")]
    Unknown,
    #[error("what is in it has more than {0} bytes when unpacked")]
    TooLarge(usize),
    #[error("it does not unpack as {format}: {source}")]
    Damaged {
        format: &'static str,
        source: io::Error,
    },
}

impl UnpackError {
    /// Another copy may be better.
    pub(crate) fn is_damage(&self) -> bool {
        matches!(self, Self::TooLarge(_) | Self::Damaged { .. })
    }
}

impl Format {
    const MAGICS: [(&'static [u8], Self); 7] = [
        (&[0x1f, 0x8b], Self::Gzip),
        (b"\xfd7zXZ\0", Self::Xz),
        (&[0x5d, 0, 0], Self::Lzma),
        (&[0x28, 0xb5, 0x2f, 0xfd], Self::Zstd),
        (&[0x02, 0x21, 0x4c, 0x18], Self::Lz4),
        (b"BZh", Self::Bzip2),
        (&[0x89, b'L', b'Z', b'O'], Self::Lzo),
    ];

    /// The format that `packed` begins like.
    pub(crate) fn of(packed: &[u8]) -> Option<Self> {
        let magic = Self::MAGICS
            .into_iter()
            .find(|(magic, _)| packed.starts_with(magic))?;
        Some(magic.1)
    }

    /// Its usual name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Lzma => "lzma",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
            Self::Bzip2 => "bzip2",
            Self::Lzo => "lzo",
        }
    }
}

/// Unpacks `packed`, to at most `limit` bytes.
pub(crate) fn unpack(format: Format, packed: &[u8], limit: usize) -> Result<Vec<u8>, UnpackError> {
    let damaged = |source| UnpackError::Damaged {
        format: format.name(),
        source,
    };
    let reader: Box<dyn Read + '_> = match format {
        Format::Gzip => Box::new(flate2::read::GzDecoder::new(packed)),
        Format::Xz => Box::new(lzma_rust2::XzReader::new(packed, false)),
        Format::Lzma => {
            // A dictionary larger than the result is of no use, and who asks for one wants our
            // memory.
            let memory = (LIMIT >> 10) as u32;
            let reader = lzma_rust2::LzmaReader::new_mem_limit(packed, memory, None);
            Box::new(reader.map_err(damaged)?)
        }
        Format::Zstd => Box::new(
            zstd::Decoder::with_buffer(packed)
                .map_err(damaged)?
                .single_frame(),
        ),
        Format::Lz4 => Box::new(lz4_flex::frame::FrameDecoder::new(packed)),
        Format::Bzip2 => Box::new(bzip2::read::BzDecoder::new(packed)),
        Format::Lzo => Box::new(lzo::Reader::new(packed).map_err(damaged)?),
    };
    let mut data = Vec::new();
    reader
        .take(limit as u64 + 1)
        .read_to_end(&mut data)
        .map_err(damaged)?;
    if data.len() > limit {
        return Err(UnpackError::TooLarge(limit));
    }
    Ok(data)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    /// The bytes that `program`, one of the programs that a kernel's build runs, makes of `plain`.
    fn run(program: &str, plain: &[u8]) -> Vec<u8> {
        let mut words = program.split(' ');
        let mut child = Command::new(words.next().unwrap())
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        let mut stdin = child.stdin.take().unwrap();
        let plain = plain.to_vec();
        let feeder = std::thread::spawn(move || stdin.write_all(&plain));
        let output = child.wait_with_output().unwrap();
        feeder.join().unwrap().unwrap();
        assert!(output.status.success(), "{program} failed");
        output.stdout
    }

    /// A legacy lz4 file of one block.
    fn lz4(plain: &[u8]) -> Vec<u8> {
        let block = lz4_flex::block::compress(plain);
        let size = (block.len() as u32).to_le_bytes();
        [&[0x02, 0x21, 0x4c, 0x18], &size[..], &block].concat()
    }

    fn bzip2(plain: &[u8]) -> Vec<u8> {
        let mut packed = Vec::new();
        let level = bzip2::Compression::best();
        let mut encoder = bzip2::read::BzEncoder::new(plain, level);
        encoder.read_to_end(&mut packed).unwrap();
        packed
    }

    /// `plain` in every format that lg unpacks, with the commands of scripts/Makefile.lib.
    pub(crate) fn packed(plain: &[u8]) -> Vec<(Format, Vec<u8>)> {
        vec![
            (Format::Gzip, run("gzip -n -f -9", plain)),
            (
                Format::Xz,
                run("xz --check=crc32 --x86 --lzma2=dict=8MiB", plain),
            ),
            (Format::Lzma, run("xz --format=lzma", plain)),
            // The window of -22, without its price.
            (Format::Zstd, run("zstd --long=27 -q", plain)),
            (Format::Lz4, lz4(plain)),
            (Format::Bzip2, bzip2(plain)),
            (Format::Lzo, lzo::tests::packed(plain)),
        ]
    }

    /// Code-like bytes: the BCJ filter of xz changes `call` instructions.
    fn plain() -> Vec<u8> {
        (0..20_000u32)
            .flat_map(|n| [0xe8, n as u8, (n >> 8) as u8, 0, 0])
            .collect()
    }

    #[test]
    fn round_trips() {
        let plain = plain();
        for (format, packed) in packed(&plain) {
            assert_eq!(Format::of(&packed), Some(format));
            assert!(
                unpack(format, &packed, plain.len()).unwrap() == plain,
                "{format:?}"
            );
        }
    }

    #[test]
    fn the_limit_holds() {
        let plain = plain();
        for (format, packed) in packed(&plain) {
            let error = unpack(format, &packed, plain.len() - 1).unwrap_err();
            assert!(
                matches!(error, UnpackError::TooLarge(_)),
                "{format:?}: {error}"
            );
        }
    }

    #[test]
    fn damage_is_an_error() {
        let plain = plain();
        for (format, packed) in packed(&plain) {
            let half = &packed[..packed.len() / 2];
            let result = unpack(format, half, plain.len());
            assert!(!result.is_ok_and(|data| data == plain), "{format:?}");
        }
    }
}
