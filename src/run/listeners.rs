//! The sockets: bound before anything is given up, served once everything stands.

use std::sync::Arc;

use tokio::task::JoinHandle;

use super::{
    StartError,
    assembly::{House, Stack},
    serve,
};
use crate::{
    accept::listener::{Bound, Inherited, Protocol},
    admin,
    config::Config,
    http::body::Relay,
    log::{Level, event},
};

/// Sockets that are open, with nobody serving them yet.
#[derive(Debug)]
pub struct Listeners {
    bound: Vec<Bound>,
    admin: Option<admin::Listener>,
}

impl Listeners {
    /// Binds all of them, or none.
    pub fn bind(config: &Config, inherited: &mut Inherited) -> Result<Self, StartError> {
        let bound = config.listeners().iter().map(|listener| Bound::bind(listener, inherited)).collect::<Result<Vec<_>, _>>();
        let bound = bound.map_err(StartError::Bind)?;
        let admin = admin::Listener::bind(&config.admin);
        let admin = admin.map_err(StartError::bind("admin.listen", "choose an address that is free, or off"))?;
        Ok(Listeners { bound, admin })
    }

    /// Serves on all of them.
    pub fn start<S, R, B, C>(self, house: &Arc<House<S, R>>) -> Serving
    where
        S: Stack<B>,
        R: Stack<C>,
        B: Relay + Send + 'static,
        C: Relay + Send + 'static,
    {
        let mut tasks = Vec::new();
        if let Some(admin) = self.admin {
            let admin = admin.serve(Arc::new(house.admin()));
            tasks.push(tokio::spawn(async move {
                let Err(error) = admin.await;
                event(Level::Error, "the admin listener does not serve", &[("error", &error)]);
            }));
        }
        for bound in self.bound {
            let (gate, closing) = (Arc::clone(&house.gate), house.drain.closing());
            tasks.push(match bound.config().protocol {
                Protocol::Redirect => tokio::spawn(serve::listener(bound, gate, Arc::clone(&house.redirects), closing)),
                Protocol::Http | Protocol::Https => tokio::spawn(serve::listener(bound, gate, Arc::clone(&house.sites), closing)),
            });
        }
        Serving(tasks)
    }
}

/// Listeners that serve, until this is dropped.
#[derive(Debug)]
pub struct Serving(Vec<JoinHandle<()>>);

impl Drop for Serving {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}
