"""Series as scanners of several vendors describe them, written from general knowledge of their habits; no patient's.

Each line: description, what else the header says, and the sequence it is (None: dropped or not named).
"""

T1, T1C, T2, FLAIR = "t1", "t1c", "t2", "flair"


def se(tr, te, **more):
    return {"RepetitionTime": tr, "EchoTime": te, "FlipAngle": 90, "ScanningSequence": "SE", **more}


def gr(tr, te, flip, **more):
    return {"RepetitionTime": tr, "EchoTime": te, "FlipAngle": flip, "ScanningSequence": "GR", **more}


def ir(tr, te, ti, **more):
    return {"RepetitionTime": tr, "EchoTime": te, "InversionTime": ti, "ScanningSequence": "SE\\IR", **more}


MPRAGE = {**gr(2300, 2.98, 9), "InversionTime": 900, "ScanningSequence": "GR\\IR"}
BRAVO = gr(8.2, 3.2, 12, InversionTime=450)
TFE = gr(8.1, 3.7, 8)
T1SE = se(550, 12)
T2TSE = se(5200, 98)
FLAIR2D = ir(9000, 120, 2500)
FLAIR3D = ir(5000, 390, 1800)
AGENT = {"ContrastBolusAgent": "Gadovist"}
NO_HEADER: dict = {}

VENDORS = [
    # Siemens
    ("t1_mprage_sag_p2_iso", MPRAGE, T1),
    ("t1_mprage_sag_p2_iso_Gd", MPRAGE, T1C),
    ("t1_mpr_ns_sag_p2_iso", MPRAGE, T1),
    ("t1_mprage_tra_KM", {**MPRAGE, **AGENT}, T1C),
    ("t1_se_tra", T1SE, T1),
    ("t1_se_tra_nativ", T1SE, T1),
    ("t1_tse_tra post KM", T1SE, T1C),
    ("t1_fl2d_tra", gr(250, 2.5, 70), T1),
    ("t1_vibe_dixon_tra_p2_W", gr(5.9, 2.5, 9, **AGENT), T1C),
    ("t2_tse_tra_512", T2TSE, T2),
    ("t2_blade_tra", T2TSE, T2),
    ("t2_space_sag_p2_iso", se(3200, 410), T2),
    ("t2_tirm_tra_dark-fluid", FLAIR2D, FLAIR),
    ("t2_tirm_tra_dark-fluid_fs", FLAIR2D, FLAIR),
    ("t2_space_dark-fluid_sag_p2_iso", FLAIR3D, FLAIR),
    ("t2_spc_ir_sag_dark-fluid", FLAIR3D, FLAIR),
    ("t1_tirm_tra_dark-fluid", ir(2000, 12, 860), T1),
    ("t2_tirm_cor_fs", ir(4500, 60, 220), None),
    ("t2_fl2d_tra_hemo", gr(800, 26, 20), None),
    ("ep2d_diff_3scan_trace_p2", {"ScanningSequence": "EP", "RepetitionTime": 4000, "EchoTime": 90}, None),
    ("ep2d_diff_3scan_trace_p2_ADC", {"ScanningSequence": "EP"}, None),
    ("RESOLVE_4scan_trace_tra", {"ScanningSequence": "EP"}, None),
    ("ep2d_perf", {"ScanningSequence": "EP", "RepetitionTime": 1500, "EchoTime": 30, **AGENT}, None),
    ("relCBV", NO_HEADER, None),
    ("SWI_Images", gr(27, 20, 15), None),
    ("mIP_Images(SW)", gr(27, 20, 15), None),
    ("Pha_Images", gr(27, 20, 15), None),
    ("tof_fl3d_tra_p2_multi-slab", gr(21, 3.4, 18), None),
    ("AAHead_Scout", gr(3.2, 1.4, 8), None),
    ("localizer", gr(8.6, 4, 20), None),
    ("gre_field_mapping", gr(400, 4.9, 60), None),
    ("svs_se_30", {"RepetitionTime": 2000, "EchoTime": 30}, None),
    ("csi_slaser", {"RepetitionTime": 1700, "EchoTime": 40}, None),
    ("t1_mprage_sag_MPR_cor", {**MPRAGE, "ImageType": "DERIVED\\PRIMARY\\MPR"}, T1),
    ("pd+t2_tse_tra", se(3000, 12), None),
    ("pd+t2_tse_tra", se(3000, 95), T2),
    ("ciss3d_tra_iso", gr(5.8, 2.6, 50), None),
    ("t2_haste_tra", se(1500, 90), T2),
    ("mp2rage_UNI_Images", {**gr(5000, 2.9, 4), "InversionTime": 700}, T1),
    ("mp2rage_INV1", {**gr(5000, 2.9, 4), "InversionTime": 700}, None),
    # GE
    ("Sag T1 FLAIR", ir(2500, 24, 860), T1),
    ("AX T1 FLAIR +C", ir(2500, 24, 860, **AGENT), T1C),
    ("Ax T2 FLAIR", ir(9500, 125, 2400), FLAIR),
    ("Ax T2 FLAIR Propeller", ir(9500, 125, 2400), FLAIR),
    ("AX FLAIR POST", ir(9000, 120, 2250, **AGENT), FLAIR),
    ("Sag CUBE T2 FLAIR", ir(6000, 120, 1850), FLAIR),
    ("Sag 3D T2 Cube", se(2500, 85), T2),
    ("Ax T2 FRFSE", T2TSE, T2),
    ("Ax T2 FSE fs", T2TSE, T2),
    ("AX T1 FSE", se(600, 10), T1),
    ("AX T1 SE +C", se(500, 11, **AGENT), T1C),
    ("+C Ax T1", se(500, 11, **AGENT), T1C),
    ("Ax 3D BRAVO", BRAVO, T1),
    ("3D BRAVO +C", BRAVO, T1C),
    ("SAG 3D FSPGR IR PREP", BRAVO, T1),
    ("AX 3D SPGR GD STEALTH", gr(7.5, 2.9, 20), T1C),
    ("COR T1 POST FAT SAT", se(600, 11), T1C),
    ("AX T1 W/WO CONTRAST", se(600, 11), T1),
    ("Ax SWAN", gr(40, 24, 15), None),
    ("AX T2* GRE", gr(600, 20, 20), None),
    ("AX GRE", gr(600, 20, 20), None),
    ("Ax DWI ASSET b1000", {"ScanningSequence": "EP"}, None),
    ("Apparent Diffusion Coefficient (mm2/s)", NO_HEADER, None),
    ("3 Plane Loc", gr(5, 1.6, 30), None),
    ("ASSET Calibration", gr(3.7, 1.6, 10), None),
    ("3D ASL", {"RepetitionTime": 4800, "EchoTime": 10}, None),
    ("AX PERFUSION DSC", {"ScanningSequence": "EP", **AGENT}, None),
    ("COW 3D TOF MRA", gr(20, 2.8, 15), None),
    ("PJN:MIP", {**gr(20, 2.8, 15), "ImageType": "DERIVED\\SECONDARY\\PROJECTION IMAGE"}, None),
    ("PROBE-P TE 144", {"RepetitionTime": 1500, "EchoTime": 144}, None),
    ("Screen Save", NO_HEADER, None),
    ("AX FIESTA 3D", gr(5, 2, 55), None),
    ("SAG STIR C-SPINE", ir(4000, 50, 180), None),
    ("MRI POST-OP AX T1", se(500, 11), T1),
    # Philips
    ("T1W_3D_TFE", TFE, T1),
    ("T1W_3D_TFE_GD", {**TFE, **AGENT}, T1C),
    ("sT1W_3D_FFE", gr(25, 4.6, 30), T1),
    ("T1W_SE", se(500, 15), T1),
    ("T1W_TSE +C", se(500, 10), T1C),
    ("3D T1 VISTA GD", se(700, 30), T1C),
    ("T2W_TSE", se(3000, 80), T2),
    ("T2W TSE MV XD", se(4000, 100), T2),
    ("3D_Brain_VIEW_T2", se(2500, 240), T2),
    ("3D_Brain_VIEW_FLAIR_SHC", ir(4800, 340, 1660), FLAIR),
    ("T2W_FLAIR", ir(11000, 125, 2800), FLAIR),
    ("FLAIR_longTR", ir(11000, 125, 2800), FLAIR),
    ("sFLAIR 3D VISTA", FLAIR3D, FLAIR),
    ("T2W_FFE", gr(700, 16, 18), None),
    ("SWIp", gr(31, 7.2, 17), None),
    ("DWI_b1000", {"ScanningSequence": "EP"}, None),
    ("dADC", {"ScanningSequence": "EP", "ImageType": "ORIGINAL\\PRIMARY\\ADC_SE"}, None),
    ("Survey_SHC", gr(11, 4.6, 15), None),
    ("SmartBrain", gr(5.6, 2.7, 6), None),
    ("Reg - WIP T1W_3D_TFE GD", {**TFE, "ImageType": "DERIVED\\SECONDARY"}, T1C),
    ("T1 TFE MDC dopo", TFE, T1C),
    ("B1_calibration_brain", gr(50, 3, 60), None),
    # Canon, Hitachi, United Imaging, and languages
    ("T1WI", se(450, 12), T1),
    ("T2WI", T2TSE, T2),
    ("造影T1WI", se(450, 12), T1C),
    ("T1強調 造影後 Ax", se(450, 12), T1C),
    ("t1_gre_fsp_3d_sag +C", gr(7.2, 3.1, 10), T1C),
    ("T1 平扫", se(450, 12), T1),
    ("T1 增强", se(450, 12), T1C),
    ("T1 ax nach KM", se(450, 12), T1C),
    ("T1 ax ohne KM", se(450, 12), T1),
    ("T1 AX SANS INJECTION", se(450, 12), T1),
    ("T1 AX AVEC GADO", se(450, 12), T1C),
    ("3D T1 EG GADO", gr(8, 3, 12), T1C),
    ("AX T1 s/contraste", se(450, 12), T1),
    ("AX T1 c/contraste", se(450, 12), T1C),
    ("T1 SIN CONTRASTE", se(450, 12), T1),
    ("T1 CON CONTRASTE", se(450, 12), T1C),
    ("T1 post mdc", se(450, 12), T1C),
    ("T1 senza mdc", se(450, 12), T1),
    ("T1 bez kontrastu", se(450, 12), T1),
    ("T1 po kontrascie", se(450, 12), T1C),
    ("T1 без контраста", se(450, 12), T1),
    ("T1 с контрастом", se(450, 12), T1C),
    ("T1 kontrastlı", se(450, 12), T1C),
    ("T1 kontrastsız", se(450, 12), T1),
    ("T1 zonder contrast", se(450, 12), T1),
    ("T1 w/o", se(450, 12), T1),
    ("AX T1 NON CONTRAST", se(450, 12), T1),
    ("AXT1POST", NO_HEADER, T1C),
    ("SAGT1PRE", NO_HEADER, T1),
    ("AXT2FLAIR", NO_HEADER, FLAIR),
    # a header without telling words
    ("Ax 5mm", se(550, 11), T1),
    ("Kopf tra", T2TSE, T2),
    ("Head 1", FLAIR2D, FLAIR),
    ("Head 2", ir(4500, 45, 170), None),
    ("unnamed", NO_HEADER, None),
    ("pre-op navigation", NO_HEADER, None),
    ("post-op check", NO_HEADER, None),
]

FILES = [
    # names of NIfTI files without a sidecar
    ("sub-01_T1w", T1),
    ("sub-01_ce-gadolinium_T1w", T1C),
    ("sub-01_ses-1_acq-mprage_run-2_T1w", T1),
    ("sub_01_T2w", T2),
    ("sub-01_FLAIR", FLAIR),
    ("sub-01_dwi", None),
    ("sub-01_task-rest_bold", None),
    ("sub-01_T2starw", None),
    ("sub-01_T1map", None),
    ("sub-01_UNIT1", T1),
    ("sub-01_inv-1_MP2RAGE", None),
    ("sub-01_desc-brain_mask", None),
    ("BraTS-GLI-00005-100-t1n", T1),
    ("BraTS-GLI-00005-100-t1c", T1C),
    ("BraTS-GLI-00005-100-t2w", T2),
    ("BraTS-GLI-00005-100-t2f", FLAIR),
    ("BraTS-GLI-00005-100-seg", None),
    ("BraTS20_Training_001_t1ce", T1C),
    ("TCGA-02-0003_1997.06.08_t1Gd", T1C),
    ("patient7_t1_pre", T1),
    ("patient7_t1_post", T1C),
    ("5_AX_T2_FLAIR_20_e1", FLAIR),
    ("anon_t1_mprage_gd_ph", None),
    ("12_t1_km_3d", T1C),
    ("phasediff", None),
    ("ADC", None),
    ("image", None),
]
