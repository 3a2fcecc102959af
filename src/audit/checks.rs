//! The catalogue: every check of the audit with its severity, why it matters, and the remedy.

use super::finding::Severity;

macro_rules! checks {
    ($($id:ident $severity:ident $title:literal $why:literal $remedy:literal;)*) => {
        /// A check. Its name is stable: waivers, reports and dashboards hold on to it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Id {
            $(#[doc = $title] $id,)*
        }

        impl Id {
            pub const ALL: &'static [Self] = &[$(Self::$id,)*];

            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$id => stringify!($id),)* }
            }

            #[must_use]
            pub fn severity(self) -> Severity {
                match self { $(Self::$id => Severity::$severity,)* }
            }

            #[must_use]
            pub fn title(self) -> &'static str {
                match self { $(Self::$id => $title,)* }
            }

            #[must_use]
            pub fn why(self) -> &'static str {
                match self { $(Self::$id => $why,)* }
            }

            #[must_use]
            pub fn remedy(self) -> &'static str {
                match self { $(Self::$id => $remedy,)* }
            }
        }
    };
}

impl Id {
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|id| id.name() == name)
    }
}

checks! {
    S01 Critical "Rails key in version control"
        "Whoever can read the repository, or a copy of it, decrypts every credential."
        "Change what the credentials hold, remove the key from all commits, and add it to .gitignore.";
    S02 High "Key file readable by others"
        "Any local user reads the key, and with it the application's credentials."
        "chmod 0600, owned by the user that runs Puma, in a folder that others cannot write to.";
    S03 Critical "Control token written down"
        "The token stops and restarts Puma and reads its threads' backtraces; here it is in version control or in the process list."
        "Leave auth_token out (Puma makes one up), or take it from the environment; change the old one.";
    S04 High "Secret written into Puma's configuration"
        "Everyone who can read the repository has it, for good."
        "Take it from the environment or the credentials, and change it.";
    S05 High "Private key or keystore password inside Puma's configuration"
        "A key in version control is everybody's key."
        "Let the proxy hold the certificate, or name a key file with mode 0600; change the key.";
    S06 Critical ".env file in version control"
        "Environment files hold passwords and tokens; history keeps them after they are deleted."
        "Change what it holds, remove it from all commits, add /.env* to .gitignore, keep a .env.example.";
    S07 High ".env file readable by others"
        "Any local user reads the application's passwords and tokens."
        "chmod 0600.";
    S08 Critical "secret_key_base of production written down"
        "It signs sessions and cookies: with it anyone becomes any user."
        "Move it to the credentials or to SECRET_KEY_BASE, and change it.";
    S09 High "Password written into a configuration file"
        "Everyone who can read the repository reaches the database, cache or storage."
        "Use <%= ENV[\"…\"] %> or the credentials, and change the password.";
    S10 High "Value in Kamal's secrets file"
        "The file is meant to hold references; a value in it is copied to every machine that deploys, and often committed."
        "Write KEY=$KEY or KEY=$(command), and change the value.";
    S11 High "Secret in a deployment file"
        "Deployment files are shared, committed and shown in consoles."
        "Name the variable only, keep the value in the platform's secret store, and change it.";
    S12 High "Secret in an image's ENV or ARG"
        "It stays in the image's history: everyone who can pull the image reads it."
        "RUN --mount=type=secret for the build, the orchestrator's secrets at run time; change the value.";
    S13 Medium "Secrets are copied into the image"
        "COPY . takes keys, environment files and the repository along unless .dockerignore keeps them out."
        "Add /config/*.key, /config/credentials/*.key, /.env* and /.git to .dockerignore.";
    S14 Medium "Version control would take secrets"
        "One `git add .` commits what is not ignored."
        "Add the named paths to .gitignore.";
    S15 Medium "Secret in a systemd unit"
        "Units are readable by every local user, and `systemctl show` prints the environment."
        "LoadCredential=, or EnvironmentFile= with mode 0600; change the value.";
    S16 High "Placeholder or development key in production"
        "The key is public or made for development: sessions can be forged."
        "Make a new one with `bin/rails secret` and keep it in the secret store.";
    S17 Medium "TLS key or certificate is weak, exposed, expiring or does not match"
        "A readable or short key is no key; an expired or wrong certificate is an outage."
        "chmod 0600, at least RSA 2048 or an elliptic curve, renew in time.";
    E01 Critical "Control server open to the network"
        "It stops and restarts Puma and shows its threads; the token travels in the query string, in clear."
        "Use a unix socket with umask 0077, or tcp://127.0.0.1.";
    E02 Critical "Control server without a token"
        "Whoever can connect stops Puma with one GET."
        "Remove no_token, or give it a token from the environment.";
    E03 High "Control server may do more than tell"
        "A leaked token stops and restarts Puma, although only statistics are wanted."
        "activate_control_app url, { data_only: true }";
    E04 High "Control socket or state file in a shared temporary folder"
        "Other users can guess, replace or squat the path."
        "Put it into /run/<application> or tmp/ of the application, owned by its user.";
    E05 High "Control socket open to every local user"
        "Puma creates it with mode 0777; the token is then the only guard."
        "Add ?umask=0077 to its URL or umask: 0077 to the options.";
    E06 High "State file shows the control token"
        "The state file holds the token in clear and is created readable by all."
        "state_permission 0600";
    E07 High "Puma's socket open to every local user"
        "Puma creates it with mode 0777: every local user passes the proxy by, with any header they like."
        "bind \"unix://…?umask=0117\" with the proxy in Puma's group, or a folder with mode 0750.";
    E08 High "Puma reachable past the proxy"
        "Requests that come in directly meet none of the proxy's limits, and forge its headers."
        "Bind to a unix socket or 127.0.0.1, and publish only the proxy's port.";
    E09 Medium "Weak TLS settings at Puma"
        "verify_mode=none asks for no client certificate although a CA is named; TLS 1.0 and 1.1 are broken."
        "verify_mode=force_peer, and leave no_tlsv1 and no_tlsv1_1 at true; or let the proxy do TLS.";
    E10 High "Client address taken from a header that others can write"
        "Puma believes the leftmost value: whoever reaches it directly is whoever they say."
        "Close direct access (E07, E08), and name X-Forwarded-For or X-Real-IP, which the proxy sets itself.";
    E11 High "PROXY protocol where it can be forged"
        "Before 7.2.1 and 8.0.2 a PROXY line is read on every request, even in a body; and who reaches the socket writes their own."
        "Remove set_remote_address proxy_protocol (the proxy sends X-Forwarded-For), or update Puma and close the socket.";
    E12 High "Puma runs in development mode"
        "Outside production Puma answers errors with a backtrace."
        "environment \"production\", or RAILS_ENV=production where Puma is started.";
    E13 Medium "Error handler tells the exception to clients"
        "Messages and backtraces name paths, queries and versions."
        "Answer a fixed text, and log the exception.";
    E14 Medium "Logs say too much or are readable by others"
        "Request lines carry tokens in the query; debug output carries more."
        "Log at the proxy, which redacts; log files with mode 0640.";
    E15 Medium "Puma's own files inside public/"
        "Everything under public/ is served to everyone."
        "Move it to tmp/ or log/.";
    E16 High "Sensitive file under public/"
        "Everything under public/ is served to everyone."
        "Remove it, and treat what it holds as known.";
    E17 Medium "More rights than needed"
        "A hole in the application becomes the machine, or stays in the code for good."
        "USER in the image, User= or DynamicUser= in the unit, code that its user cannot write.";
    R01 High "Gem with a known vulnerability"
        "The hole is published, often with the request that uses it."
        "bundle update the gem to the version named.";
    R02 Medium "No limit on request bodies"
        "One client fills the disk or the memory."
        "http_content_length_limit in puma.rb, or limits.body at the proxy.";
    R03 Medium "queue_requests off and open to the network"
        "Each slow client holds a thread for as long as it likes."
        "Leave queue_requests on, or let only the proxy reach Puma.";
    R04 Medium "Puma closes idle connections before the proxy does"
        "A request that meets the closing connection is lost."
        "persistent_timeout above the proxy's idle timeout by 5 s or more.";
    R05 Medium "Capacity unknown, or threads without database connections"
        "The proxy cannot bound what it lets in, or threads wait for a connection and time out."
        "Set workers and threads by value or environment, and pool to at least the number of threads.";
    R06 Medium "Rails does not insist on TLS or on its host names"
        "Cookies travel in clear, and links can be poisoned through Host."
        "config.force_ssl = true (with config.assume_ssl = true behind TLS), and config.hosts named.";
    R07 Medium "Trusted proxies too wide, or without this proxy"
        "Everyone can claim any address, or every client has the proxy's."
        "config.action_dispatch.trusted_proxies with the proxy's address and nothing else.";
    R08 Medium "X-Accel-Redirect with a Rack that takes its mapping from clients"
        "A client names internal files (CVE-2025-61780, CVE-2026-34830)."
        "Update Rack to 2.2.23, 3.1.21 or 3.2.6, or remove x_sendfile_header.";
    R09 Low "Puma accepts more than needed"
        "Unknown methods and headers with underscores are how rules of a proxy are walked around."
        "Leave supported_http_methods at its default, and set allow_underscore_headers false.";
    R10 Medium "Debugging tools in production"
        "Consoles, profilers and job dashboards run code or show data."
        "Put them into the development group, and dashboards behind authentication.";
    W01 Low "Waiver without effect"
        "It is expired, has no reason or no date, or names no check: what it should cover is reported."
        "Repair what it covers, or renew it with a reason and a date.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_44_checks_and_the_one_for_waivers() {
        assert_eq!(Id::ALL.len(), 45);
        for id in Id::ALL {
            assert_eq!(Id::parse(id.name()), Some(*id));
            assert!(!id.why().is_empty() && !id.remedy().is_empty(), "{}", id.name());
        }
        assert_eq!(Id::parse("S99"), None);
    }

    #[test]
    fn no_two_checks_have_the_same_title() {
        let titles: std::collections::BTreeSet<_> = Id::ALL.iter().map(|id| id.title()).collect();
        assert_eq!(titles.len(), Id::ALL.len());
    }
}
