//! Sessions that are open while their key is revoked.

use std::time::Duration;

use agentpost::kite::Notice;
use agentpost::urls::ws_url;
use agentpost::{Agentpost, Error};
use anyhow::Result;

use super::shared_key::{SharedKey, WRITER};
use crate::record::history::{Fields, Lane, Op, Outcome};
use crate::workload::context::ClientContext;
use crate::workload::load::StopFlag;

/// How often a listener checks whether it should end.
const LOOK: Duration = Duration::from_millis(50);

/// Listens with a key until it is rejected or should end. Each session is a use of the key for as long as it is open.
pub async fn listen(
    ctx: ClientContext,
    mut lane: Lane,
    key_in_use: std::sync::Arc<SharedKey>,
    over: StopFlag,
) -> Result<()> {
    let post = Agentpost::builder(ctx.urls.join(" ")).key(&*key_in_use.secret);
    let post = post.team(&key_in_use.team).build()?;
    let mut session = post.kite().session([format!("agent_to:{WRITER}")], None)?;
    let mut connected = false;
    while !over.is_set() {
        let Ok(notice) = tokio::time::timeout(LOOK, session.next()).await else {
            continue;
        };
        match notice {
            Ok(Notice::Connecting { url }) => {
                let node = ctx.urls.iter().position(|base| ws_url(base).is_ok_and(|ws| ws == url));
                let asked = Fields {
                    name: Some("listen".to_owned()),
                    ..Fields::default()
                };
                lane.invoke(node.map(|place| place + 1), Op::KeyUse, &key_in_use.name, asked);
                connected = false;
            }
            Ok(Notice::Connected { .. }) => connected = true,
            Ok(Notice::ConnectionFailed { reason }) => lane.end(Outcome::Fail(reason)),
            Ok(Notice::Disconnected { .. }) => lane.end(Outcome::Ok(Fields::default())),
            Ok(_) => {}
            Err(error) if !connected => {
                lane.end(match error {
                    Error::Session { code: 4001, message } => Outcome::Fail(format!("401 {message}")),
                    error => Outcome::Info(error.to_string()),
                });
                return Ok(());
            }
            Err(_) => break,
        }
    }
    lane.end(match connected {
        true => Outcome::Ok(Fields::default()),
        false => Outcome::Info("the session was not connected yet".to_owned()),
    });
    Ok(())
}
