//! Encoding and decoding of structures in the presentation language of RFC 8446, section 3.

use crate::error::DecodeError;

pub type Decoded<T> = Result<T, DecodeError>;

/// A bounds-checked cursor. Offsets in its errors count from the start of `data`.
pub struct Reader<'a> {
    data: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    /// Read `data` from `offset` on; an offset beyond the end counts as the end.
    pub fn new(data: &'a [u8], offset: usize) -> Self {
        Self { data, offset: offset.min(data.len()) }
    }

    pub fn offset(&self) -> usize {
        self.offset
    }

    pub fn is_empty(&self) -> bool {
        self.offset == self.data.len()
    }

    pub fn take(&mut self, len: usize, name: &str) -> Decoded<&'a [u8]> {
        let rest = &self.data[self.offset..];
        let Some(bytes) = rest.get(..len) else {
            let left = rest.len();
            let reason = format!("{name} needs {len} bytes, {left} are left");
            return Err(DecodeError::new(self.offset, reason));
        };
        self.offset += len;
        Ok(bytes)
    }

    pub fn array<const N: usize>(&mut self, name: &str) -> Decoded<&'a [u8; N]> {
        self.take(N, name).map(|bytes| bytes.try_into().expect("take gives N bytes"))
    }

    pub fn u8(&mut self, name: &str) -> Decoded<u8> {
        self.array(name).map(|&[byte]| byte)
    }

    pub fn u16(&mut self, name: &str) -> Decoded<u16> {
        self.array(name).map(|bytes| u16::from_be_bytes(*bytes))
    }

    pub fn u64(&mut self, name: &str) -> Decoded<u64> {
        self.array(name).map(|bytes| u64::from_be_bytes(*bytes))
    }

    /// `opaque name<min..2^16-1>`
    pub fn opaque16(&mut self, min: usize, name: &str) -> Decoded<&'a [u8]> {
        let len = self.u16(name)?.into();
        self.body(len, min, name)
    }

    /// `opaque name<min..2^32-1>`
    pub fn opaque32(&mut self, min: usize, name: &str) -> Decoded<&'a [u8]> {
        let len = u32::from_be_bytes(*self.array(name)?) as usize;
        self.body(len, min, name)
    }

    fn body(&mut self, len: usize, min: usize, name: &str) -> Decoded<&'a [u8]> {
        if len < min {
            return Err(DecodeError::new(self.offset, format!("{name} is empty")));
        }
        self.take(len, name)
    }

    /// `T name<0..2^16-1>`: check that every item parses, and return the raw bytes.
    pub fn raw_list16<T: Wire<'a>>(&mut self, name: &str) -> Decoded<&'a [u8]> {
        let raw = self.opaque16(0, name)?;
        let mut items = Self { data: &self.data[..self.offset], offset: self.offset - raw.len() };
        while !items.is_empty() {
            T::read(&mut items)?;
        }
        Ok(raw)
    }

    /// Read structures up to the end.
    pub fn list<T: Wire<'a>>(&mut self) -> Decoded<Vec<T>> {
        let mut items = Vec::new();
        while !self.is_empty() {
            items.push(T::read(self)?);
        }
        Ok(items)
    }
}

pub fn put16(out: &mut Vec<u8>, bytes: &[u8]) {
    let len = u16::try_from(bytes.len()).expect("the field is below 2^16 bytes");
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(bytes);
}

pub fn put32(out: &mut Vec<u8>, bytes: &[u8]) {
    let len = u32::try_from(bytes.len()).expect("the field is below 2^32 bytes");
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(bytes);
}

/// A structure of the draft, borrowed from the message that contains it.
pub trait Wire<'a>: Sized {
    fn read(reader: &mut Reader<'a>) -> Decoded<Self>;
    fn write(&self, out: &mut Vec<u8>);

    /// Decode the whole of `data`; trailing bytes are an error.
    fn decode(data: &'a [u8]) -> Decoded<Self> {
        let mut reader = Reader::new(data, 0);
        let value = Self::read(&mut reader)?;
        if !reader.is_empty() {
            return Err(DecodeError::new(reader.offset, "trailing bytes"));
        }
        Ok(value)
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out);
        out
    }
}
