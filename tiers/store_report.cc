#include "tiers/store_report.h"

#include <algorithm>
#include <utility>

namespace kvtier {

Json problems_json(std::vector<Finding> findings) {
  std::ranges::stable_sort(findings, {}, &Finding::path);
  Json list = Json::array();
  for (const Finding& finding : findings) {
    const bool unread = finding.kind == FindingKind::kUnreadable;
    list.push_back(Json{{"object", finding.path},
                        {"region", finding.region},
                        {"severity", unread ? "unread" : finding_severity_name(finding.severity)},
                        {"reason", finding.what}});
  }
  return list;
}

Json report_json(StoreReport report, bool deep) {
  return Json{
      {"sound", report.sound()},    {"segments", report.segments},
      {"objects", report.objects},  {"chunks", deep ? report.chunks_checked : report.chunks},
      {"bytes", report.read_bytes}, {"problems", problems_json(std::move(report.findings))}};
}

}  // namespace kvtier
