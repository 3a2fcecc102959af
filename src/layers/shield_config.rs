//! `[shield]` in `proxy.toml`: what Rack can take, each part with a mode of its own.

use serde::{Deserialize, Serialize};

use super::{multipart, parameters};
use crate::units::{ByteSize, Mode};

/// `[shield]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Range; dropped when it is above a limit, overlaps or is malformed.
    pub range: RangeLimit,
    /// Accept, Accept-Encoding, Accept-Language, Accept-Charset; dropped when above a limit.
    pub accept: AcceptLimit,
    /// Content-Type; 400 when it is malformed, above a limit, or multipart/form-data without exactly one boundary.
    pub content_type: ContentTypeLimit,
    /// Cookie; 431 when above a limit.
    pub cookies: CookieLimit,
    /// The query; 431 when above a limit, 400 when its encoding is none.
    pub query: QueryLimit,
    /// Bodies of type multipart/*; 400, 431 or 413.
    pub multipart: MultipartLimit,
    /// Bodies of type application/x-www-form-urlencoded; 431 or 413.
    pub form: FormLimit,
}

/// `[shield.range]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RangeLimit {
    /// `enforce`, `observe` or `off`. Default: enforce.
    pub mode: Mode,
    /// Ranges. Default: 16.
    pub count: usize,
    /// Bytes of the field. Default: 256.
    pub bytes: ByteSize,
}

/// `[shield.accept]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AcceptLimit {
    /// `enforce`, `observe` or `off`. Default: enforce.
    pub mode: Mode,
    /// Members of a list. Default: 64.
    pub items: usize,
    /// Members of Accept-Encoding, in which Rack is quadratic (CVE-2026-34230). Default: 16.
    pub encodings: usize,
    /// Bytes of a list. Default: 2 KiB.
    pub bytes: ByteSize,
}

/// `[shield.content_type]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ContentTypeLimit {
    /// `enforce`, `observe` or `off`. Default: enforce.
    pub mode: Mode,
    /// Bytes of the field. Default: 512.
    pub bytes: ByteSize,
    /// Bytes of the boundary. Default: 70, as RFC 2046 has it.
    pub boundary: usize,
}

/// `[shield.cookies]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CookieLimit {
    /// `enforce`, `observe` or `off`. Default: enforce.
    pub mode: Mode,
    /// Cookies; browsers keep up to 180 for a site. Default: 180.
    pub pairs: usize,
    /// Bytes of all together. Default: 8 KiB.
    pub bytes: ByteSize,
}

/// `[shield.query]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct QueryLimit {
    /// `enforce`, `observe` or `off`, for the two limits. Default: enforce.
    pub mode: Mode,
    /// Parameters. Default: 4096, as Rack has it.
    pub parameters: u32,
    /// Brackets in one name. Default: 32, as Rack has it.
    pub depth: u32,
    /// `enforce`, `observe` or `off`, for malformed escapes, `%00` and what is no UTF-8. Default: enforce.
    pub encoding: Mode,
}

/// `[shield.multipart]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MultipartLimit {
    /// `enforce`, `observe` or `off`. Default: enforce.
    pub mode: Mode,
    /// Parts. Default: 4096, as Rack has it.
    pub parts: u32,
    /// Parts with a file name. Default: 128, as Rack has it.
    pub files: u32,
    /// Bytes of one part's header. Default: 8 KiB.
    pub part_header: ByteSize,
    /// Bytes of one Content-Disposition. Default: 2 KiB.
    pub disposition: ByteSize,
    /// Bytes before the first and behind the last delimiter. Default: 1 KiB.
    pub preamble: ByteSize,
    /// Bytes of all parts without a file name together, which Rack holds in memory. Default: 16 MiB.
    pub fields: ByteSize,
    /// `enforce`, `observe` or `off`, for bodies that end inside a part. Default: enforce.
    pub terminated: Mode,
}

/// `[shield.form]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FormLimit {
    /// `enforce`, `observe` or `off`. Default: enforce.
    pub mode: Mode,
    /// Bytes of the body, which Rack holds in memory. Default: 4 MiB.
    pub bytes: ByteSize,
    /// Parameters. Default: 4096, as Rack has it.
    pub parameters: u32,
    /// Brackets in one name. Default: 32, as Rack has it.
    pub depth: u32,
}

impl MultipartLimit {
    /// As the scanner wants them.
    pub fn bounds(&self) -> multipart::Bounds {
        multipart::Bounds {
            parts: self.parts,
            files: self.files,
            part_header: self.part_header.as_usize(),
            disposition: self.disposition.as_usize(),
            preamble: self.preamble.0,
            fields: self.fields.0,
        }
    }
}

impl FormLimit {
    /// As the counter wants them.
    pub fn bounds(&self) -> parameters::Bounds {
        parameters::Bounds { count: self.parameters, depth: self.depth }
    }
}

impl Default for RangeLimit {
    fn default() -> Self {
        RangeLimit { mode: Mode::Enforce, count: 16, bytes: ByteSize(256) }
    }
}

impl Default for AcceptLimit {
    fn default() -> Self {
        AcceptLimit { mode: Mode::Enforce, items: 64, encodings: 16, bytes: ByteSize::kib(2) }
    }
}

impl Default for ContentTypeLimit {
    fn default() -> Self {
        ContentTypeLimit { mode: Mode::Enforce, bytes: ByteSize(512), boundary: 70 }
    }
}

impl Default for CookieLimit {
    fn default() -> Self {
        CookieLimit { mode: Mode::Enforce, pairs: 180, bytes: ByteSize::kib(8) }
    }
}

impl Default for QueryLimit {
    fn default() -> Self {
        QueryLimit { mode: Mode::Enforce, parameters: 4096, depth: 32, encoding: Mode::Enforce }
    }
}

impl Default for MultipartLimit {
    fn default() -> Self {
        MultipartLimit {
            mode: Mode::Enforce,
            parts: 4096,
            files: 128,
            part_header: ByteSize::kib(8),
            disposition: ByteSize::kib(2),
            preamble: ByteSize::kib(1),
            fields: ByteSize::mib(16),
            terminated: Mode::Enforce,
        }
    }
}

impl Default for FormLimit {
    fn default() -> Self {
        FormLimit { mode: Mode::Enforce, bytes: ByteSize::mib(4), parameters: 4096, depth: 32 }
    }
}
