//! Profiles: settings for a place that Palisade stands in, weaker than any file. None is less strict than the built-in
//! defaults about what bytes mean; they differ in how much is allowed of it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The place that Palisade stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Before a Rails application, facing the Internet: the built-in defaults.
    #[default]
    Rails,
    /// Before an API: small bodies.
    Api,
    /// Beside Puma in one pod, behind an ingress.
    Sidecar,
    /// The one entry to many applications.
    Ingress,
    /// Under attack: short deadlines, few connections per client.
    Siege,
}

impl Profile {
    /// The name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Profile::Rails => "rails",
            Profile::Api => "api",
            Profile::Sidecar => "sidecar",
            Profile::Ingress => "ingress",
            Profile::Siege => "siege",
        }
    }

    /// What it sets, as `proxy.toml` would write it.
    pub(super) fn settings(self) -> &'static str {
        match self {
            Profile::Rails => "",
            Profile::Api => "[limits]\nbody = \"8MiB\"\n",
            // An ingress speaks for all clients, so limits per address would count it as one.
            Profile::Sidecar => {
                "[limits]\nconnections = 4000\nconnections_per_ip = 4000\n\
                 connections_per_prefix = { v4_24 = 4000, v6_64 = 4000, v6_48 = 4000 }\n"
            }
            Profile::Ingress => "[limits]\nconnections = 60000\n",
            Profile::Siege => {
                "[limits]\nbody = \"8MiB\"\nconnections_per_ip = 16\nconnections_per_prefix = { v4_24 = 128, v6_64 = 16, v6_48 = 256 }\n\
                 [timeouts]\ntls_handshake = \"3s\"\nheader = \"5s\"\nbody_stall = \"5s\"\nwrite_stall = \"5s\"\nidle = \"5s\"\n\
                 [rates]\nbody_min = \"4KiB/s\"\nwrite_min = \"4KiB/s\"\ngrace = \"5s\"\n"
            }
        }
    }
}
