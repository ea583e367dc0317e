// SPDX-License-Identifier: Apache-2.0
//
// A virtual processor as a described device: KVM's own structures, with tables beside them that name what is in the
// stream. Saving asks KVM for all of it (pre_save), loading gives all of it to KVM (post_load).
//
// Threads: only while the processor rests.
#pragma once

#include "guest/migrationd_guest.h"

#include <linux/kvm.h>
#include <cstdint>

namespace kvm_guest {

struct Msr {
  std::uint32_t index;
  std::uint64_t value;
};

// What moves. Not the host's model-specific luxuries: what system software sets and expects to find again.
struct CpuRegisters {
  kvm_regs regs;
  kvm_sregs sregs;
  kvm_debugregs debug;
  kvm_vcpu_events events;
  kvm_mp_state mp;
  std::uint32_t xcr_count;
  kvm_xcr xcrs[KVM_MAX_XCRS];
  std::uint8_t xsave[4096];
  std::uint32_t msr_count;
  Msr msrs[32];
};

struct CpuState {
  CpuRegisters registers;
  int vcpu;         // KVM's descriptor
  md_guest* guest;  // is told why a hook refuses
  char error[160];  // why the last function below failed
};

extern const md_device cpu_device;

// All registers from KVM, or to it. False: `error` says which call failed and why.
bool read_registers(CpuState& cpu);
bool write_registers(CpuState& cpu);

// The first instruction of the guest at address 0, in real mode, with flat segments; `memory_size` in ebx and esi.
bool reset_registers(CpuState& cpu, std::uint64_t memory_size);

}  // namespace kvm_guest
