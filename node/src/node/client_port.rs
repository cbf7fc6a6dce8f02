//! The client port during a start. It is bound first and answers at once, because a supervisor that asks `/health` must
//! not kill a node that reads a long log: health and metrics answer, `/readyz` and everything else are refused with what
//! the start is doing. When the node is up, or quarantined, the routes are replaced.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_util::sync::DropGuard;
use tokio_util::task::TaskTracker;

use crate::base::lifetime::Lifetime;
use crate::base::metrics::Metrics;
use crate::server::http::refusing;
use crate::server::http::serve::{self, Routes};

/// What a start is doing. Clones are cheap and share it.
#[derive(Clone)]
pub(super) struct Doing(Arc<Mutex<String>>);

impl Doing {
    pub(super) fn now(&self, step: impl ToString) {
        *self.0.lock() = step.to_string();
    }
}

/// A client port that answers. Dropping it closes the port, unless the node was started.
pub struct ClientPort {
    /// Its address.
    pub addr: SocketAddr,
    pub(super) doing: Doing,
    pub(super) lifetime: Lifetime,
    /// The task that accepts connections.
    pub(super) background: TaskTracker,
    routes: Arc<Routes>,
    closing: DropGuard,
}

impl ClientPort {
    /// Serves a bound port with the routes of a start.
    pub(super) fn open(listener: TcpListener) -> std::io::Result<Self> {
        let addr = listener.local_addr()?;
        let doing = Doing(Arc::new(Mutex::new("its data directory is being checked".to_owned())));
        let said = doing.clone();
        let reason = move || format!("this node is starting: {}", said.0.lock());
        let health = serde_json::json!({ "status": "ok" });
        let routes = Routes::new(refusing::router(&health, Metrics::new(), reason));
        let (lifetime, background) = (Lifetime::default(), TaskTracker::new());
        let Lifetime { shutdown, tasks, watch } = &lifetime;
        let serving = serve::serve(listener, routes.clone(), shutdown.clone(), tasks.clone());
        background.spawn(watch.until(shutdown, "client port", serving));
        Ok(ClientPort {
            addr,
            doing,
            closing: shutdown.clone().drop_guard(),
            lifetime,
            background,
            routes,
        })
    }

    /// Serves `routes` from now on.
    pub(super) fn serve(&self, routes: Router) {
        self.routes.replace(routes);
    }

    /// Closes the port, and waits until the connections have ended.
    pub(super) async fn close(self) {
        let ClientPort {
            lifetime, background, ..
        } = &self;
        lifetime.shutdown.cancel();
        for tasks in [background, &lifetime.tasks] {
            tasks.close();
            tasks.wait().await;
        }
    }

    /// Leaves the port open when this is dropped: from now on the lifetime of the node closes it.
    pub(super) fn keep(self) {
        self.closing.disarm();
    }
}
