//! openraft's conformance suite for storage, on real databases.

use agentpost_raft_store::disk::log_store::LogStore;
use agentpost_raft_store::disk::memory_budget::MemoryBudget;
use agentpost_raft_store::disk::open;
use agentpost_raft_store::disk::options::{LogStart, Options};
use agentpost_raft_store::disk::state_machine::StateMachine;
use agentpost_raft_store::disk::types::TypeConfig;
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

struct OnDisk;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for OnDisk {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let options = Options {
            log_start: LogStart::Anywhere,
            state_memory: MemoryBudget::new(4 << 20),
            ..Options::default()
        };
        let stores = open::shard(dir.path(), options).unwrap();
        Ok((dir, stores.log, stores.machine))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_and_state_machine_do_what_openraft_expects() {
    Suite::test_all(OnDisk).await.unwrap();
}
