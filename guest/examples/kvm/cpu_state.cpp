// SPDX-License-Identifier: Apache-2.0
#include "guest/examples/kvm/cpu_state.hpp"

#include "guest/examples/kvm/kvm_abi.hpp"

#include <sys/ioctl.h>
#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>

namespace kvm_guest {
namespace {

md_device part(const char* name, const md_field* fields) {
  md_device device{};
  device.name = name;
  device.version = device.minimum_version = 1;
  device.fields = fields;
  return device;
}

const md_field regs_fields[] = {
    MD_U64(kvm_regs, rax),
    MD_U64(kvm_regs, rbx),
    MD_U64(kvm_regs, rcx),
    MD_U64(kvm_regs, rdx),
    MD_U64(kvm_regs, rsi),
    MD_U64(kvm_regs, rdi),
    MD_U64(kvm_regs, rsp),
    MD_U64(kvm_regs, rbp),
    MD_U64(kvm_regs, r8),
    MD_U64(kvm_regs, r9),
    MD_U64(kvm_regs, r10),
    MD_U64(kvm_regs, r11),
    MD_U64(kvm_regs, r12),
    MD_U64(kvm_regs, r13),
    MD_U64(kvm_regs, r14),
    MD_U64(kvm_regs, r15),
    MD_U64(kvm_regs, rip),
    MD_U64(kvm_regs, rflags),
    MD_END,
};
const md_device regs_part = part("kvm-example-cpu-regs", regs_fields);

const md_field segment_fields[] = {
    MD_U64(kvm_segment, base),
    MD_U32(kvm_segment, limit),
    MD_U16(kvm_segment, selector),
    MD_U8(kvm_segment, type),
    MD_U8(kvm_segment, present),
    MD_U8(kvm_segment, dpl),
    MD_U8(kvm_segment, db),
    MD_U8(kvm_segment, s),
    MD_U8(kvm_segment, l),
    MD_U8(kvm_segment, g),
    MD_U8(kvm_segment, avl),
    MD_U8(kvm_segment, unusable),
    MD_END,
};
const md_device segment_part = part("kvm-example-cpu-segment", segment_fields);

const md_field table_fields[] = {MD_U64(kvm_dtable, base), MD_U16(kvm_dtable, limit), MD_END};
const md_device table_part = part("kvm-example-cpu-table", table_fields);

const md_field sregs_fields[] = {
    MD_STRUCT(kvm_sregs, cs, &segment_part),
    MD_STRUCT(kvm_sregs, ds, &segment_part),
    MD_STRUCT(kvm_sregs, es, &segment_part),
    MD_STRUCT(kvm_sregs, fs, &segment_part),
    MD_STRUCT(kvm_sregs, gs, &segment_part),
    MD_STRUCT(kvm_sregs, ss, &segment_part),
    MD_STRUCT(kvm_sregs, tr, &segment_part),
    MD_STRUCT(kvm_sregs, ldt, &segment_part),
    MD_STRUCT(kvm_sregs, gdt, &table_part),
    MD_STRUCT(kvm_sregs, idt, &table_part),
    MD_U64(kvm_sregs, cr0),
    MD_U64(kvm_sregs, cr2),
    MD_U64(kvm_sregs, cr3),
    MD_U64(kvm_sregs, cr4),
    MD_U64(kvm_sregs, cr8),
    MD_U64(kvm_sregs, efer),
    MD_U64(kvm_sregs, apic_base),
    MD_ARRAY(kvm_sregs, interrupt_bitmap, MD_TYPE_U64),
    MD_END,
};
const md_device sregs_part = part("kvm-example-cpu-sregs", sregs_fields);

const md_field debug_fields[] = {
    MD_ARRAY(kvm_debugregs, db, MD_TYPE_U64),
    MD_U64(kvm_debugregs, dr6),
    MD_U64(kvm_debugregs, dr7),
    MD_U64(kvm_debugregs, flags),
    MD_END,
};
const md_device debug_part = part("kvm-example-cpu-debug", debug_fields);

using Events = kvm_vcpu_events;
const md_field events_fields[] = {
    MD_U8(Events, exception.injected),
    MD_U8(Events, exception.nr),
    MD_U8(Events, exception.has_error_code),
    MD_U8(Events, exception.pending),
    MD_U32(Events, exception.error_code),
    MD_U8(Events, interrupt.injected),
    MD_U8(Events, interrupt.nr),
    MD_U8(Events, interrupt.soft),
    MD_U8(Events, interrupt.shadow),
    MD_U8(Events, nmi.injected),
    MD_U8(Events, nmi.pending),
    MD_U8(Events, nmi.masked),
    MD_U32(Events, sipi_vector),
    MD_U32(Events, flags),
    MD_U8(Events, smi.smm),
    MD_U8(Events, smi.pending),
    MD_U8(Events, smi.smm_inside_nmi),
    MD_U8(Events, smi.latched_init),
    MD_U8(Events, triple_fault.pending),
    MD_U8(Events, exception_has_payload),
    MD_U64(Events, exception_payload),
    MD_END,
};
const md_device events_part = part("kvm-example-cpu-events", events_fields);

const md_field xcr_fields[] = {MD_U32(kvm_xcr, xcr), MD_U64(kvm_xcr, value), MD_END};
const md_device xcr_part = part("kvm-example-cpu-xcr", xcr_fields);

const md_field msr_fields[] = {MD_U32(Msr, index), MD_U64(Msr, value), MD_END};
const md_device msr_part = part("kvm-example-cpu-msr", msr_fields);

using Cpu = CpuRegisters;
// The first `length` of an array of structures.
#define KVM_COUNTED_STRUCTS(member, length, part)                                                                      \
  {                                                                                                                    \
#member, MD_TYPE_STRUCT, 0, offsetof(Cpu, member), sizeof(Cpu::member[0]), std::extent_v < decltype(Cpu::member)>, \
        1, offsetof(Cpu, length), MD_TYPE_U32, &part, nullptr                                                          \
  }
const md_field cpu_fields[] = {
    MD_STRUCT(Cpu, regs, &regs_part),
    MD_STRUCT(Cpu, sregs, &sregs_part),
    MD_STRUCT(Cpu, debug, &debug_part),
    MD_STRUCT(Cpu, events, &events_part),
    MD_U32(Cpu, mp.mp_state),
    MD_U32(Cpu, xcr_count),
    KVM_COUNTED_STRUCTS(xcrs, xcr_count, xcr_part),
    MD_BUFFER(Cpu, xsave),
    MD_U32(Cpu, msr_count),
    KVM_COUNTED_STRUCTS(msrs, msr_count, msr_part),
    MD_END,
};

int pre_save(void* state) {
  auto& cpu = *static_cast<CpuState*>(state);
  return read_registers(cpu) ? 0 : md_guest_refuse(cpu.guest, cpu.error);
}

int post_load(void* state, std::uint32_t /*version*/) {
  auto& cpu = *static_cast<CpuState*>(state);
  return write_registers(cpu) ? 0 : md_guest_refuse(cpu.guest, cpu.error);
}

// System calls, kvmclock, page attributes, the clock. EFER and the APIC's base are special registers.
constexpr std::array<std::uint32_t, 17> moved_msrs = {
    0x00000010, 0x00000174, 0x00000175, 0x00000176, 0x000001a0, 0x00000277, 0xc0000081, 0xc0000082, 0xc0000083,
    0xc0000084, 0xc0000102, 0xc0000103, 0x4b564d00, 0x4b564d01, 0x4b564d02, 0x4b564d03, 0x4b564d04};
static_assert(moved_msrs.size() <= std::extent_v<decltype(Cpu::msrs)>);

bool failed(CpuState& cpu, const char* what) {
  std::snprintf(cpu.error, sizeof(cpu.error), "%s: %s", what, std::strerror(errno));
  return false;
}

bool call(CpuState& cpu, unsigned long request, void* argument, const char* what) {
  return ::ioctl(cpu.vcpu, request, argument) >= 0 || failed(cpu, what);
}

// One at a time: a host that has one of them not at all does not spoil the others.
void read_msrs(CpuState& cpu) {
  Cpu& to = cpu.registers;
  to.msr_count = 0;
  for (const std::uint32_t index : moved_msrs) {
    OneMsr one;
    one.entry.index = index;
    if (::ioctl(cpu.vcpu, get_msrs, &one) == 1) to.msrs[to.msr_count++] = {index, one.entry.data};
  }
}

// A value that is there already need not be written: what this host has not, but the guest never used, is no reason to
// refuse the guest.
bool write_msrs(CpuState& cpu) {
  for (std::uint32_t i = 0; i < cpu.registers.msr_count; ++i) {
    OneMsr one;
    one.entry.index = cpu.registers.msrs[i].index;
    one.entry.data = cpu.registers.msrs[i].value;
    if (::ioctl(cpu.vcpu, set_msrs, &one) == 1 || one.entry.data == 0) continue;
    std::snprintf(cpu.error, sizeof(cpu.error), "KVM_SET_MSRS: this host does not take MSR 0x%x = 0x%llx",
                  one.entry.index, static_cast<unsigned long long>(one.entry.data));
    return false;
  }
  return true;
}

kvm_segment flat(kvm_segment segment) {
  segment.base = 0;
  segment.selector = 0;
  segment.limit = 0xffffffff;
  segment.g = 1;
  return segment;
}

}  // namespace

const md_device cpu_device = [] {
  md_device device = part("kvm-example-cpu", cpu_fields);
  device.pre_save = pre_save;
  device.post_load = post_load;
  device.state_size = sizeof(CpuState);
  return device;
}();

bool read_registers(CpuState& cpu) {
  Cpu& to = cpu.registers;
  to = {};
  kvm_xcrs xcrs{};
  if (!call(cpu, KVM_GET_REGS, &to.regs, "KVM_GET_REGS") || !call(cpu, KVM_GET_SREGS, &to.sregs, "KVM_GET_SREGS") ||
      !call(cpu, KVM_GET_DEBUGREGS, &to.debug, "KVM_GET_DEBUGREGS") ||
      !call(cpu, KVM_GET_VCPU_EVENTS, &to.events, "KVM_GET_VCPU_EVENTS") ||
      !call(cpu, KVM_GET_MP_STATE, &to.mp, "KVM_GET_MP_STATE") || !call(cpu, KVM_GET_XCRS, &xcrs, "KVM_GET_XCRS") ||
      !call(cpu, get_xsave, to.xsave, "KVM_GET_XSAVE"))
    return false;
  to.xcr_count = std::min<std::uint32_t>(xcrs.nr_xcrs, KVM_MAX_XCRS);
  std::copy_n(xcrs.xcrs, to.xcr_count, to.xcrs);
  read_msrs(cpu);
  return true;
}

bool write_registers(CpuState& cpu) {
  Cpu& from = cpu.registers;
  kvm_xcrs xcrs{};
  xcrs.nr_xcrs = from.xcr_count;
  std::copy_n(from.xcrs, from.xcr_count, xcrs.xcrs);
  // What decides how the rest is understood comes first; a pending event belongs to registers that are there.
  return call(cpu, KVM_SET_SREGS, &from.sregs, "KVM_SET_SREGS") &&
         call(cpu, KVM_SET_REGS, &from.regs, "KVM_SET_REGS") && call(cpu, KVM_SET_XCRS, &xcrs, "KVM_SET_XCRS") &&
         call(cpu, set_xsave, from.xsave, "KVM_SET_XSAVE") && write_msrs(cpu) &&
         call(cpu, KVM_SET_DEBUGREGS, &from.debug, "KVM_SET_DEBUGREGS") &&
         call(cpu, KVM_SET_MP_STATE, &from.mp, "KVM_SET_MP_STATE") &&
         call(cpu, KVM_SET_VCPU_EVENTS, &from.events, "KVM_SET_VCPU_EVENTS");
}

bool reset_registers(CpuState& cpu, std::uint64_t memory_size) {
  Cpu& to = cpu.registers;
  if (!read_registers(cpu)) return false;
  for (kvm_segment* segment : {&to.sregs.cs, &to.sregs.ds, &to.sregs.es, &to.sregs.ss}) *segment = flat(*segment);
  to.regs = {};
  to.regs.rflags = 2;
  to.regs.rbx = memory_size;
  to.regs.rsi = memory_size;
  return write_registers(cpu);
}

}  // namespace kvm_guest
