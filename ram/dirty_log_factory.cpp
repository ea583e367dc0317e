// SPDX-License-Identifier: Apache-2.0
#include "ram/dirty_log_factory.hpp"

#include "ram/dirty_log_sync.hpp"
#include "ram/dirty_log_wp.hpp"

#include <utility>
#include <vector>

namespace migrationd::ram {
namespace {

Result<std::unique_ptr<DirtyLog>> make_kind(RamMap& map, GuestSpace& space, DirtyLogKind kind, BlockChoice blocks) {
  if (kind == DirtyLogKind::wp_sync) {
    MD_TRY(auto log, DirtyLogSync::make(map, space, std::move(blocks)));
    return std::unique_ptr<DirtyLog>(std::move(log));
  }
  MD_TRY(auto log, DirtyLogWp::make(map, space, std::move(blocks)));
  return std::unique_ptr<DirtyLog>(std::move(log));
}

// One page, written, protected, written again: the log must report exactly that.
Result<void> try_kind(DirtyLogKind kind) {
  RamMap map;
  MD_TRY(auto block, RamBlock::create("probe", page_size, page_size));
  MD_TRY(const Mapping view, Mapping::of_fd(block->fd(), page_size));
  MD_CHECK(map.add(std::move(block)));
  LocalSpace space(std::vector<std::byte*>{view.data()});
  volatile std::byte* const byte = view.data();
  *byte = std::byte{1};
  MD_TRY(const auto log, make_kind(map, space, kind, {}));
  MD_CHECK(log->start());
  DirtyBitmaps dirty(1, Bitmap(1));
  MD_TRY(const std::uint64_t before, log->sync(dirty));
  *byte = std::byte{2};
  MD_TRY(const std::uint64_t after, log->sync(dirty));
  if (before != 0 || after != 1)
    return machine_error("dirty log: this kernel accepts write protection but does not report a written page");
  return {};
}

}  // namespace

Result<void> probe_dirty_log(DirtyLogKind kind) {
  if (kind != DirtyLogKind::automatic) return try_kind(kind);
  if (try_kind(DirtyLogKind::wp_async)) return {};
  return try_kind(DirtyLogKind::wp_sync);
}

Result<std::unique_ptr<DirtyLog>> make_dirty_log(RamMap& map, GuestSpace& space, DirtyLogKind kind,
                                                 BlockChoice blocks) {
  if (kind != DirtyLogKind::automatic) {
    MD_CHECK(probe_dirty_log(kind));
    return make_kind(map, space, kind, std::move(blocks));
  }
  const auto async_works = try_kind(DirtyLogKind::wp_async);
  if (async_works) return make_kind(map, space, DirtyLogKind::wp_async, std::move(blocks));
  // Asynchronous protection asks for no privilege, so trying it says what the kernel can. The other does: here it says
  // nothing of another process.
  if (!space.is_here()) return make_kind(map, space, DirtyLogKind::wp_sync, std::move(blocks));
  auto sync_works = try_kind(DirtyLogKind::wp_sync);
  if (!sync_works) {
    const bool alike = sync_works.error().text() == async_works.error().text();
    return std::move(sync_works)
        .error()
        .with("no dirty log works here" + (alike ? "" : ": " + async_works.error().text()));
  }
  return make_kind(map, space, DirtyLogKind::wp_sync, std::move(blocks));
}

}  // namespace migrationd::ram
