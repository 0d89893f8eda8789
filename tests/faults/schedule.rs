//! Faults of all kinds at random moments, while pods come, go and crash, and agent and runtime are restarted.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::future::join_all;
use harness::eventually::eventually;
use harness::fake_cri::{EventFault, Fault, Gate, Lack, Memory, Rpc, Stage};
use harness::random::Random;
use tonic::Code;

use crate::calls::CALLS;
use crate::rig::{LONG, Rig, Steady};

const STEADY: [&str; 3] = ["web-1", "web-2", "web-3"];
/// Rows of faults that run at once.
const ROWS: u64 = 6;
const STEPS: u32 = 60;

/// What is ill at the moment, and which guests there are to be.
struct Row {
    rig: Rig,
    random: Random,
    gates: Vec<Gate>,
    guests: BTreeSet<String>,
    gone: BTreeSet<String>,
    before: Vec<(&'static str, Steady)>,
    told: Vec<String>,
}

impl Row {
    async fn new(random: Random) -> anyhow::Result<Self> {
        let mut rig = Rig::start().await?;
        STEADY.iter().try_for_each(|name| rig.add(name))?;
        rig.until_ready(&STEADY).await?;
        let before = STEADY.map(|name| (name, rig.steady(name))).into();
        let (gates, guests, gone, told) = Default::default();
        Ok(Self { rig, random, gates, guests, gone, before, told })
    }

    fn chance(&mut self, limit: usize) -> usize {
        usize::try_from(self.random.below(limit as u64)).unwrap_or(0)
    }

    fn fault(&mut self, rpc: Rpc) -> Fault {
        let codes = [Code::Unavailable, Code::DeadlineExceeded, Code::Internal, Code::Unknown];
        let code = codes[self.chance(codes.len())];
        let stage = [Stage::Before, Stage::After][self.chance(2)];
        let lack = [Lack::All, Lack::Items, Lack::Fields][self.chance(3)];
        let fault = match self.chance(4) {
            0 => Fault::delay(Duration::from_millis(self.random.below(1500))).at(stage),
            1 => Fault::fail(code, "the runtime is ill").at(stage),
            2 => Fault::lack(lack),
            // A probe that does not answer in its time has failed, and is to be heard.
            _ if rpc == Rpc::ExecSync => Fault::fail(code, "the runtime is ill"),
            _ => {
                let gate = Gate::new();
                self.gates.push(gate.clone());
                Fault::hang(&gate).at(stage)
            }
        };
        match self.chance(3) {
            0 => fault,
            _ => fault.times(1 + u32::try_from(self.chance(4)).unwrap_or(0)),
        }
    }

    fn step(&mut self, number: u32) -> anyhow::Result<()> {
        match self.chance(14) {
            0..=4 => {
                let rpc = CALLS[self.chance(CALLS.len())];
                let fault = self.fault(rpc);
                self.told.push(format!("{number}: {rpc:?} {fault:?}"));
                self.rig.fake.inject(rpc, fault);
            }
            5 => self.heal(),
            6 | 7 => {
                let name = format!("guest-{number}");
                self.rig.add(&name)?;
                self.guests.insert(name);
            }
            8 => self.remove_one()?,
            9 => {
                let guests: Vec<String> = self.guests.iter().flat_map(|name| self.rig.containers(name)).collect();
                guests.first().map(|container| self.rig.fake.exit(container, 1));
            }
            10 => {
                let count = self.chance(6);
                let fault = [
                    EventFault::Drop(count),
                    EventFault::Duplicate(count),
                    EventFault::Reverse(count),
                    EventFault::Blank(count),
                ][self.chance(4)];
                self.told.push(format!("{number}: {fault:?}"));
                self.rig.fake.disturb_events(fault);
            }
            11 => self.rig.interrupt(),
            12 => {
                self.told.push(format!("{number}: the runtime is restarted"));
                self.rig.fake.restart(Memory::Kept)?;
            }
            _ => {
                self.told.push(format!("{number}: the agent is restarted"));
                self.rig.restart_agent()?;
            }
        }
        Ok(())
    }

    fn remove_one(&mut self) -> anyhow::Result<()> {
        let Some(name) = self.guests.pop_first() else { return Ok(()) };
        self.rig.remove(&name)?;
        self.gone.insert(name);
        Ok(())
    }

    fn heal(&mut self) {
        CALLS.iter().for_each(|rpc| self.rig.fake.heal(*rpc));
        self.gates.drain(..).for_each(|gate| gate.release());
    }

    fn undisturbed(&self) -> anyhow::Result<()> {
        self.before.iter().try_for_each(|(name, before)| self.rig.is_undisturbed(name, before))
    }

    async fn run(&mut self) -> anyhow::Result<()> {
        for number in 0..STEPS {
            self.step(number)?;
            // The moment is the point here; nothing is waited for.
            tokio::time::sleep(Duration::from_millis(self.random.below(200))).await;
            self.undisturbed()?;
        }
        self.heal();
        // What is held back for a wrong order is sent.
        self.rig.fake.disturb_events(EventFault::Reverse(0));
        self.rig.interrupt();
        for name in &self.gone {
            self.rig.until_gone(name).await?;
        }
        let guests: Vec<&str> = self.guests.iter().map(String::as_str).collect();
        self.rig.until_ready(&guests).await?;
        self.rig.until_ready(&STEADY).await?;
        for name in guests.iter().chain(&STEADY) {
            eventually(LONG, "one container", async || {
                let running = self.rig.containers(name);
                ensure!(running.len() == 1, "{name}: {running:?}");
                Ok(())
            })
            .await?;
        }
        self.undisturbed()?;
        self.rig.empty().await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_at_random_moments_disturb_no_pod_and_all_converges() {
    let mut random = Random::from_env();
    println!("NODELET_TEST_SEED={}", random.seed());
    let rows = (0..ROWS).map(|number| {
        // Each row has its own numbers, all of them from one seed.
        let own = Random::new(random.below(u64::MAX));
        async move {
            let mut row = Row::new(own).await?;
            let outcome = row.run().await;
            outcome.with_context(|| format!("row {number}: {}", row.told.join("\n")))
        }
    });
    let failed: Vec<String> =
        join_all(rows).await.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}
