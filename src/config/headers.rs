//! `[headers]`: fields that Palisade sets or takes away, for the layers that do it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    layers::{
        canonical,
        conceal::{self, Hsts},
        forwarded::{self, ForwardedFor},
        request_id,
        request_start::RequestStart,
    },
    units::{Mode, OneOrMany},
};

/// `[headers]` in `proxy.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Headers {
    /// X-Forwarded-For: the one address of the client, or appended to the list of a trusted proxy. Nobody else's list counts.
    pub forwarded: ForwardedFor,
    /// X-Request-Id: kept from trusted proxies, or always new. Never kept from anybody else.
    pub request_id: RequestIds,
    /// Whether the answer carries the request's id where the application sends none.
    pub request_id_answer: bool,
    /// X-Request-Start, from which Rails tools read the time in the queue: when the request was complete, or first received.
    pub request_start: RequestStart,
    /// Whether clients may send X-HTTP-Method-Override, which turns a checked POST into an unchecked DELETE.
    pub method_override: bool,
    /// Further fields to take away from every request.
    pub request_remove: OneOrMany<String>,
    /// Whether `response_remove` is obeyed, only counted, or off.
    pub conceal: Mode,
    /// Fields to take away from answers: what Ruby servers, Rack and Rails tell of themselves.
    pub response_remove: OneOrMany<String>,
    /// Strict-Transport-Security for so long, on answers over https where the application sets none.
    pub hsts: Hsts,
    /// `X-Content-Type-Options: nosniff`, where the application sets none.
    pub nosniff: bool,
    /// X-Frame-Options, where the application sets none: `SAMEORIGIN`, `DENY`, or empty.
    pub frame: String,
    /// Referrer-Policy, where the application sets none, or empty.
    pub referrer: String,
}

/// Whose request ids count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RequestIds {
    /// Those of `trusted_proxies`.
    #[default]
    Trust,
    /// Nobody's: each request gets a new one.
    Generate,
}

impl Headers {
    /// For `layers::forwarded`.
    pub fn forwarded(&self) -> forwarded::Config {
        forwarded::Config { mode: self.forwarded, method_override: self.method_override, strip: self.request_remove.clone() }
    }

    /// For `layers::request_id`.
    pub fn request_id(&self) -> request_id::Config {
        request_id::Config { trust: self.request_id == RequestIds::Trust, answer: self.request_id_answer }
    }

    /// For `layers::canonical`.
    pub fn canonical(&self) -> canonical::Config {
        canonical::Config { request_start: self.request_start }
    }

    /// For `layers::conceal`.
    pub fn conceal(&self) -> conceal::Config {
        conceal::Config {
            mode: self.conceal,
            response_remove: self.response_remove.clone(),
            hsts: self.hsts,
            nosniff: self.nosniff,
            frame: self.frame.clone(),
            referrer: self.referrer.clone(),
        }
    }
}

impl Default for Headers {
    fn default() -> Self {
        let (forwarded, canonical, conceal) = (forwarded::Config::default(), canonical::Config::default(), conceal::Config::default());
        Headers {
            forwarded: forwarded.mode,
            request_id: RequestIds::default(),
            request_id_answer: true,
            request_start: canonical.request_start,
            method_override: forwarded.method_override,
            request_remove: forwarded.strip,
            conceal: conceal.mode,
            response_remove: conceal.response_remove,
            hsts: conceal.hsts,
            nosniff: conceal.nosniff,
            frame: conceal.frame,
            referrer: conceal.referrer,
        }
    }
}
