//! The operator API on three nodes: teams, keys and the cluster.

use std::collections::BTreeSet;

use agentpost_proto::api::admin;
use agentpost_proto::time::rfc3339;
use serde_json::{Value, json};

use crate::common::eventually;
use crate::common::office::office;
use crate::common::web::{Call, mail, new_key};

#[tokio::test(flavor = "multi_thread")]
async fn teams_are_created_listed_and_changed_through_any_node() {
    let office = office().await;
    let admin = office.admin.clone();
    for (n, url) in office.urls.iter().enumerate() {
        let wanted = json!({ "name": format!("team {n}"), "limits": { "daily_sends": 7 } });
        let made = Call::post("/admin/v1/teams", &wanted).bearer(&admin).to(url).await.ok();
        let team: admin::Team = serde_json::from_value(made.clone()).unwrap();
        assert_eq!(
            made["limits"],
            json!({ "daily_sends": 7, "daily_reads": 10_000, "daily_webhook_registrations": 100, "monthly_events": 100_000, "overage_price_atomic": null })
        );
        let again = Call::post("/admin/v1/teams", &wanted)
            .bearer(&admin)
            .to(&office.urls[(n + 1) % 3])
            .await;
        assert_eq!(again.body["code"], "conflict");
        again.error(409);
        let path = format!("/admin/v1/teams/{}", team.id);
        let change = json!({ "limits": { "overage_price_atomic": 5, "monthly_events": 0 }, "strict_recipients": true });
        let changed = Call::patch(&path, &change).bearer(&admin).to(url).await.ok();
        assert_eq!(changed["strict_recipients"], true);
        assert_eq!(
            (&changed["limits"]["daily_sends"], &changed["limits"]["monthly_events"]),
            (&json!(7), &json!(0))
        );
        assert_eq!(changed["limits"]["overage_price_atomic"], 5);
        let nothing = Call::patch(&path, &json!({})).bearer(&admin).to(url).await.ok();
        assert_eq!(nothing, changed);
        let cleared = Call::patch(&path, &json!({ "limits": { "overage_price_atomic": null } }))
            .bearer(&admin)
            .to(url)
            .await
            .ok();
        assert_eq!(cleared["limits"]["overage_price_atomic"], Value::Null);
        let all = Call::get("/admin/v1/teams")
            .bearer(&admin)
            .to(&office.urls[(n + 2) % 3])
            .await
            .ok();
        assert!(all["teams"].as_array().unwrap().contains(&cleared), "{all}");
        let text = all.to_string();
        assert!(
            !text.contains(&format!("team_{}", "0".repeat(32))),
            "the reserved team is nobody's business"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_work_at_once_everywhere_until_they_are_revoked_everywhere() {
    let office = office().await;
    let admin = office.admin.clone();
    for (n, url) in office.urls.iter().enumerate() {
        let agent = format!("agent-{n}");
        let wanted = json!({ "name": "bound", "permissions": ["write", "read"], "agent_id": agent, "scopes": ["agent_to:x"], "expires_at": "2099-01-01T00:00:00Z" });
        let (id, key) = new_key(url, &admin, &office.team.id, &wanted).await;
        let parts: Vec<usize> = key.split('_').map(str::len).collect();
        assert_eq!(parts, [3, 8, 40]);
        // Revocation counts on every node at once, for reads and writes.
        for other in &office.urls {
            Call::get("/v1/messages").key(&key).to(other).await.ok();
            Call::post("/v1/messages", &mail("x", &json!({})))
                .bearer(&key)
                .to(other)
                .await
                .ok();
        }
        let path = format!("/admin/v1/teams/{}/keys", office.team.id);
        let listed = Call::get(&path).bearer(&admin).to(url).await.ok();
        assert!(!listed.to_string().contains(&key));
        let keys: admin::Keys = serde_json::from_value(listed).unwrap();
        let shown = keys.keys.iter().find(|k| k.id == id).unwrap();
        assert_eq!(
            (shown.permissions.join(","), shown.scopes.join(",")),
            ("read,write".to_owned(), "agent_to:x".to_owned())
        );
        assert_eq!(shown.agent_id.as_deref(), Some(agent.as_str()));
        assert_eq!(shown.expires_at.as_deref(), Some("2099-01-01T00:00:00.000Z"));
        assert!(!shown.revoked && key.starts_with(&shown.key_prefix) && key.len() > shown.key_prefix.len());

        let gone = Call::delete(format!("/admin/v1/keys/{id}"))
            .bearer(&admin)
            .to(&office.urls[(n + 1) % 3])
            .await
            .ok();
        assert_eq!(gone, json!({ "success": true }));
        for other in &office.urls {
            Call::get("/v1/messages").key(&key).to(other).await.error(401);
            Call::post("/v1/messages", &mail("x", &json!({})))
                .key(&key)
                .to(other)
                .await
                .error(401);
        }
        let listed = Call::get(&path).bearer(&admin).to(url).await.ok();
        let revoked = listed["keys"]
            .as_array()
            .unwrap()
            .iter()
            .find(|k| k["id"] == json!(id))
            .unwrap()
            .clone();
        assert_eq!(revoked["revoked"], true);
        // Revoking again changes nothing.
        Call::delete(format!("/admin/v1/keys/{id}"))
            .bearer(&admin)
            .to(url)
            .await
            .ok();
    }
    let (_, key) = new_key(
        &office.urls[0],
        &admin,
        &office.team.id,
        &json!({ "name": "team", "permissions": ["read"] }),
    )
    .await;
    assert_eq!(key.split('_').map(str::len).collect::<Vec<_>>(), [4, 8, 32]);
    let in_an_hour = rfc3339(office.cluster.services(0).clock.wall_ms() + HOUR_MS);
    let wanted = json!({ "name": "short", "permissions": ["read"], "agent_id": "a", "expires_at": in_an_hour });
    let (_, key) = new_key(&office.urls[0], &admin, &office.team.id, &wanted).await;
    Call::get("/v1/messages").key(&key).to(&office.urls[1]).await.ok();
    for node in 0..3 {
        office.cluster.services(node).clock.shift(2 * HOUR_MS as i64);
    }
    // A node uses the time of a majority, which it asks for regularly.
    eventually("an expired key", async || {
        let answer = Call::get("/v1/messages").key(&key).to(&office.urls[1]).await;
        (answer.status != 200).then_some(())
    })
    .await;
    Call::get("/v1/messages").key(&key).to(&office.urls[1]).await.error(401);
}

const HOUR_MS: u64 = 3_600_000;
const NO_DELIVERY: &str = "dlv_00000000000000000000000000000000";

/// A valid call of every route of the operator API. `keys` is the path of the team's keys.
fn routes(team: &str, keys: &str) -> Vec<Call> {
    vec![
        Call::get("/admin/v1/teams"),
        Call::post("/admin/v1/teams", &json!({ "name": "x" })),
        Call::patch(format!("/admin/v1/teams/{}", team), &json!({})),
        Call::get(keys),
        Call::post(keys, &json!({ "name": "x", "permissions": ["admin"] })),
        Call::delete(format!("/admin/v1/keys/key_{}", "0".repeat(32))),
        Call::get("/admin/v1/cluster"),
        Call::post("/admin/v1/cluster/transfer", &json!({ "node": 1 })),
        Call::post("/admin/v1/cluster/snapshot", &json!({})),
        Call::get(format!("/admin/v1/teams/{team}/signing-keys")),
        Call::post(format!("/admin/v1/teams/{team}/signing-keys/rotate"), &json!({})),
        Call::get(format!("/admin/v1/deliveries?team={team}")),
        Call::get(format!("/admin/v1/deliveries/{NO_DELIVERY}?team={team}")),
        Call::delete(format!("/admin/v1/deliveries/{NO_DELIVERY}?team={team}")),
        Call::post(
            format!("/admin/v1/deliveries/{NO_DELIVERY}/redrive?team={team}"),
            &json!({}),
        ),
    ]
}

/// Invalid calls with the status of the answer. `unknown` is an id that no team has.
fn mistakes(keys: &str, unknown: &str) -> Vec<(Call, u16)> {
    let mut all = mistakes_with_deliveries(keys);
    all.extend(mistakes_with_teams(keys, unknown));
    all
}

fn mistakes_with_deliveries(keys: &str) -> Vec<(Call, u16)> {
    let team = keys.split('/').nth(4).unwrap();
    let of = |path: &str| format!("/admin/v1/deliveries{path}?team={team}");
    let none = format!("/{NO_DELIVERY}");
    let again = format!("{none}/redrive");
    vec![
        (Call::get(of("") + "&state=lost"), 400),
        (Call::get(of("") + "&limit=0"), 400),
        (Call::get(of("") + "&order=up"), 400),
        (Call::get(of("") + "&cursor=x"), 400),
        (Call::get(of(&none)), 404),
        (Call::delete(of(&none)), 404),
        (Call::post(of(&again), &json!({})), 404),
        (Call::get(of("/x")), 404),
        (Call::get(of("/%ff")), 404),
        (Call::get(format!("/admin/v1/deliveries{none}")), 400),
        (Call::post(of(""), &json!({})), 405),
        (Call::get(of(&again)), 405),
    ]
}

fn mistakes_with_teams(keys: &str, unknown: &str) -> Vec<(Call, u16)> {
    vec![
        (Call::post("/admin/v1/teams", &json!({})), 400),
        (Call::post("/admin/v1/teams", &json!({ "name": 1 })), 400),
        (Call::post("/admin/v1/teams", &json!(["x"])), 400),
        (Call::post("/admin/v1/teams", &json!({ "name": "" })), 400),
        (Call::post("/admin/v1/teams", &json!({ "name": "a\u{7}" })), 400),
        (Call::post("/admin/v1/teams", &json!({ "name": "x".repeat(129) })), 400),
        (
            Call::post("/admin/v1/teams", &json!({ "name": "y", "color": "red" })),
            400,
        ),
        (
            Call::post(
                "/admin/v1/teams",
                &json!({ "name": "y", "limits": { "daily_sends": -1 } }),
            ),
            400,
        ),
        (Call::post("/admin/v1/teams", &json!({ "name": "y" })).raw("{"), 400),
        (Call::patch(format!("/admin/v1/teams/{unknown}"), &json!({})), 404),
        (Call::patch("/admin/v1/teams/x", &json!({})), 404),
        (Call::get(format!("/admin/v1/teams/{unknown}/keys")), 404),
        (
            Call::post(
                format!("/admin/v1/teams/{unknown}/keys"),
                &json!({ "name": "x", "permissions": ["read"] }),
            ),
            404,
        ),
        (Call::post(keys, &json!({ "name": "x", "permissions": [] })), 400),
        (Call::post(keys, &json!({ "name": "x", "permissions": ["root"] })), 400),
        (
            Call::post(
                keys,
                &json!({ "name": "x", "permissions": ["read"], "scopes": ["from:x"] }),
            ),
            400,
        ),
        (
            Call::post(
                keys,
                &json!({ "name": "x", "permissions": ["read"], "expires_at": "2001-01-01T00:00:00Z" }),
            ),
            400,
        ),
        (
            Call::post(
                keys,
                &json!({ "name": "x", "permissions": ["read"], "agent_id": "a b" }),
            ),
            400,
        ),
        (
            Call::post(
                keys,
                &json!({ "name": "x", "permissions": ["read"], "agent_id": "system" }),
            ),
            403,
        ),
        (Call::delete(format!("/admin/v1/keys/key_{}", "f".repeat(32))), 404),
        (Call::delete("/admin/v1/keys/x"), 404),
        (Call::post("/admin/v1/cluster/transfer", &json!({ "node": 99 })), 400),
        (Call::post("/admin/v1/cluster/transfer", &json!({ "node": "1" })), 400),
        (Call::get(format!("/admin/v1/teams/{unknown}/signing-keys")), 404),
        (
            Call::post(format!("/admin/v1/teams/{unknown}/signing-keys/rotate"), &json!({})),
            404,
        ),
        (Call::get("/admin/v1/teams/x/signing-keys"), 404),
        (Call::delete("/admin/v1/teams/x/signing-keys"), 405),
        (Call::get("/admin/v1/deliveries"), 400),
        (
            Call::get(format!("/admin/v1/deliveries?team={unknown}&team={unknown}")),
            400,
        ),
        (Call::get(format!("/admin/v1/deliveries?team={unknown}")), 404),
        (Call::get("/admin/v1/deliveries?team=%00"), 404),
        (Call::get("/admin/v1/nothing"), 404),
        (Call::delete("/admin/v1/teams"), 405),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn only_operators_may_call_and_their_input_is_checked() {
    let office = office().await;
    let (_, team_admin) = new_key(
        &office.urls[0],
        &office.admin,
        &office.team.id,
        &json!({ "name": "a", "permissions": ["admin"] }),
    )
    .await;
    let unknown = format!("team_{}1", "0".repeat(31));
    let keys = format!("/admin/v1/teams/{}/keys", office.team.id);
    for url in &office.urls {
        for call in routes(&office.team.id, &keys) {
            call.clone().to(url).await.error(401);
            call.clone().bearer("kite_nobody").to(url).await.error(401);
            call.clone().bearer(&office.team.key).to(url).await.error(403);
            call.clone().bearer(&team_admin).to(url).await.error(403);
        }
        for (call, status) in mistakes(&keys, &unknown) {
            call.bearer(&office.admin).to(url).await.error(status);
        }
    }
    let all = Call::get("/admin/v1/teams")
        .bearer(&office.admin)
        .to(&office.urls[0])
        .await
        .ok();
    assert_eq!(all["teams"].as_array().unwrap().len(), 1, "{all}");
    let left = Call::get(&keys).bearer(&office.admin).to(&office.urls[0]).await.ok();
    assert_eq!(left["keys"].as_array().unwrap().len(), 2, "{left}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_shows_itself_hands_over_and_takes_snapshots() {
    let office = office().await;
    Call::post("/v1/messages", &mail("x", &json!({})))
        .key(&office.team.key)
        .agent("a")
        .to(&office.urls[0])
        .await
        .ok();
    let status = |url: String| {
        let call = Call::get("/admin/v1/cluster").bearer(&office.admin);
        async move { serde_json::from_value::<admin::Cluster>(call.to(&url).await.ok()).unwrap() }
    };
    let before = status(office.urls[0].clone()).await;
    let leader = before.leader.unwrap();
    assert_eq!(before.nodes.iter().map(|node| node.id).collect::<Vec<_>>(), [1, 2, 3]);
    let target = before
        .nodes
        .iter()
        .map(|node| node.id)
        .find(|id| *id != leader)
        .unwrap();
    // The third node forwards the request to the leader.
    let third = (1..=3).find(|id| *id != leader && *id != target).unwrap();
    Call::post("/admin/v1/cluster/transfer", &json!({ "node": target }))
        .bearer(&office.admin)
        .to(&office.urls[third as usize - 1])
        .await
        .ok();
    eventually("the new leader", async || {
        (status(office.urls[0].clone()).await.leader == Some(target)).then_some(())
    })
    .await;
    for url in &office.urls {
        assert_eq!(
            Call::post("/admin/v1/cluster/snapshot", &json!({}))
                .bearer(&office.admin)
                .to(url)
                .await
                .ok(),
            json!({ "success": true })
        );
    }
    Call::post("/v1/messages", &mail("x", &json!({})))
        .key(&office.team.key)
        .agent("a")
        .to(&office.urls[1])
        .await
        .ok();
    eventually("equal state hashes", async || {
        let nodes = status(office.urls[2].clone()).await.nodes;
        let hashes: BTreeSet<_> = nodes
            .iter()
            .map(|n| (n.state_hash_index, n.state_hash.clone()))
            .collect();
        (hashes.len() == 1 && nodes.iter().all(|node| node.state_hash.is_some())).then_some(())
    })
    .await;
}
